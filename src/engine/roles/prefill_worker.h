// PrefillWorker: computes prompts for decode servers, which read the result. Nothing is computed before decode has
// leased its blocks and asked; the source blocks stay until decode acknowledged, gave up, was lost or let the lease run
// out. Owner: the engine thread.
//
//   rooms_: requests by room     wants_: decode asked, the request is not here yet     gone_: rooms given up early
#pragma once

#include <map>
#include <unordered_map>

#include "api/handover.h"
#include "engine/roles/admission.h"
#include "engine/roles/outbox.h"
#include "engine/roles/prefill_queue.h"
#include "engine/roles/reporter.h"
#include "engine/step/sampler.h"

namespace tandem::engine {

struct SourceHandover {
  uint64_t room = 0;
  bool is_fake = false;    // nobody reads (2.2.2.2)
  bool is_wanted = false;  // decode asked: peer and tag are set
  PeerId peer{};
  uint64_t tag = 0;
  uint64_t generation = 0;     // of the source lease; 0 before it is taken
  bool complete = false;       // computed, first token drawn
  bool confirm_waits = false;  // decode has everything and asked before the first token was drawn
  bool wants_digest = false;
  bool settled = false;                     // decode has it, gave up or is gone: it needs no word from here
  std::unique_ptr<api::EngineEvent> first;  // first token and its log-probability; null: not complete
  TimePoint deadline{};                     // of the present state
};

class PrefillWorker {
 public:
  explicit PrefillWorker(Core& core);

  void submit(api::EngineRequest input);
  void cancel(Request& request, const CancelCommand& command);
  bool take_reports();
  void tick();
  void form(Batch& batch, bool holds_decode);
  void before_forward(const Batch& batch) { prefill_.before_forward(batch); }
  void layer_done(const Batch& batch, int32_t layer);
  void after_step(const Batch& batch, const Sampler& sampler);
  void forget_ended() { prefill_.forget_ended(); }
  LoadFigures load() const;
  int64_t waiting_tokens() const { return prefill_.waiting_tokens(); }
  void idle() { reporter_.idle(load(), 0); }

 private:
  struct Want {
    PeerId peer;
    api::HandoverWant message;
    TimePoint deadline;
  };
  struct Gone {
    std::string reason;
    TimePoint forget_at;
  };
  struct Peer {
    uint64_t epoch = 0;
    bool greeted = false;
  };

  void report(kv::TransferReport& report);
  void receive(PeerId peer, const std::string& bytes);
  void handle(PeerId peer, const api::HandoverHello& hello);
  void handle(PeerId peer, const api::HandoverWant& want);
  void handle(PeerId peer, const api::HandoverConfirm& confirm);
  void handle(PeerId peer, const api::HandoverAck& ack);
  void handle(PeerId peer, const api::HandoverAbort& abort);
  void handle(PeerId peer, const api::HandoverQueued& queued);
  // Prefill sends these, it does not get them.
  void handle(PeerId, const api::HandoverHelloReply&) {}
  void handle(PeerId, const api::HandoverSource&) {}
  void handle(PeerId, const api::HandoverAnnounce&) {}
  void handle(PeerId, const api::HandoverConfirmed&) {}

  void lose_peer(PeerId peer, const std::string& reason);
  void accept(Request& request, PeerId peer, const api::HandoverWant& want);
  std::string fault_of(const Request& request, const api::HandoverWant& want) const;
  void refuse(PeerId peer, uint64_t room, uint64_t tag, const std::string& reason);
  void name_source(Request& request);
  void announce(const Request& request, int32_t layer_begin, int32_t layer_end, int32_t token_begin, int32_t token_end);
  void complete(Request& request, const kernels::SampleResult& drawn);
  void confirm(const Request& request);
  void remember_gone(uint64_t room, std::string reason);
  void on_end(Request& request, const Ending& ending);
  // The request of this room if it was asked for by this peer under this tag.
  Request* find(PeerId peer, uint64_t room, uint64_t tag) const;

  Core& core_;
  Outbox outbox_;
  PrefillQueue prefill_;
  Reporter reporter_;
  RoomTable rooms_;
  std::map<uint64_t, Want> wants_;
  std::map<uint64_t, Gone> gone_;
  std::unordered_map<PeerId, Peer> peers_;
  int32_t num_bootstrapping_ = 0, num_inflight_ = 0;
  TimePoint next_check_{};
};

// What this rank's cache looks like to the other side.
api::KvIdentity identity_of(const Core& core);

}  // namespace tandem::engine
