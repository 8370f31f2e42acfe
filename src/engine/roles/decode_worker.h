// DecodeWorker: takes prompts' caches over from prefill servers by reading them, then decodes. Computes no prompt
// token.
//
//   preparing_ --handshake, blocks--> kReserved --Source--> kReceiving --all read, Confirmed--> arrived_ --slot-->
//   running
//                                                                                    retracted_ <--no blocks--/
// Blocks named by a read in flight stay leased until the read ended, also after the request did (Core::Drained).
// Owner: the engine thread.
#pragma once

#include <deque>
#include <set>
#include <unordered_map>

#include "api/handover.h"
#include "engine/roles/admission.h"
#include "engine/roles/outbox.h"
#include "engine/roles/prefill_peers.h"
#include "engine/roles/reporter.h"
#include "engine/roles/running_set.h"

namespace tandem::engine {

struct SinkHandover {
  // What is known and read of the source, from prefill's first word on: thousands of requests may wait for that.
  struct Incoming {
    std::vector<int32_t> source_blocks;
    std::vector<int32_t> layer_tokens;    // announced so far, per layer
    std::vector<kv::CopyRange> unposted;  // collected during one round of reports
    std::set<uint64_t> reads;             // in flight
  };

  uint64_t room = 0, tag = 0;
  uint16_t port = 0;       // of the server; its host is in the request's bootstrap
  std::string address;     // of the prefill server, then of its rank
  bool is_routed = false;  // address is the rank's
  bool is_fake = false;
  uint64_t generation = 0;  // of the source lease
  int32_t layers_complete = 0;
  std::unique_ptr<Incoming> incoming;  // null until kReceiving
  bool confirm_sent = false, wants_digest = false;
  bool settled = false;  // acknowledged: prefill needs no abort any more
  TimePoint deadline{};
  TimePoint peer_ready_at{};  // since when only blocks were waited for; zero: it still waits

  bool is_read() const { return incoming != nullptr && !incoming->reads.empty(); }
};

class DecodeWorker {
 public:
  explicit DecodeWorker(Core& core);

  void submit(api::EngineRequest input);
  void cancel(Request& request, const CancelCommand& command);
  bool take_reports();
  void tick();
  void form(Batch& batch, bool holds_decode);
  void before_forward(const Batch&) {}
  void layer_done(const Batch&, int32_t) {}
  void after_step(const Batch& batch, const Sampler& sampler);
  void forget_ended();
  LoadFigures load() const;
  int64_t waiting_tokens() const;
  void idle() { reporter_.idle(load(), running_.new_token_ratio()); }

 private:
  void read_finished(const kv::ReadFinished& finished);
  void handle(const std::string& address, const api::HandoverSource& message);
  void handle(const std::string& address, const api::HandoverAnnounce& message);
  void handle(const std::string& address, const api::HandoverConfirmed& message);
  void handle(const std::string& address, const api::HandoverAbort& message);
  // Decode sends these, it does not get them.
  void handle(const std::string&, const api::HandoverHello&) {}
  void handle(const std::string&, const api::HandoverHelloReply&) {}
  void handle(const std::string&, const api::HandoverWant&) {}
  void handle(const std::string&, const api::HandoverConfirm&) {}
  void handle(const std::string&, const api::HandoverAck&) {}
  void handle(const std::string&, const api::HandoverQueued&) {}

  void lose_peer(const PeerGone& gone);
  void admit_prepared();
  void tell_queued();
  scheduler::DecodeLoad decode_load() const;
  int64_t taken_in_tokens() const;
  const PrefillPeer* find_source(Request& request);
  void ask(Request& request, const PrefillPeer& peer);
  void add_ranges(Request& request, int32_t layer, int32_t token_begin, int32_t token_end, int32_t remote_blocks);
  void post_reads();
  void maybe_confirm(Request& request);
  std::string fault_of(const Request& request, const api::HandoverSource& message, int32_t remote_blocks) const;
  bool digest_matches(const Request& request, const api::HandoverConfirmed& message) const;
  void arrive(Request& request, int32_t first_token, const std::optional<api::TokenLogprob>& logprob);
  void start_arrived();
  void retract(Request& request);
  void resume_retracted();
  void park(Request& request);
  void unpark(Request& request);
  void fail(Request& request, const std::string& reason);
  void on_end(Request& request);
  Request* find(const std::string& address, uint64_t room, uint64_t tag) const;

  Core& core_;
  Outbox outbox_;
  PrefillPeers peers_;
  RunningSet running_;
  Reporter reporter_;
  RoomTable rooms_;                  // from submit to the end
  std::deque<Request*> preparing_;   // first come, first served
  std::vector<Request*> receiving_;  // kReserved, kReceiving
  std::deque<Request*> arrived_;
  std::deque<Request*> retracted_;
  std::vector<Request*> to_post_;  // scratch: have unposted ranges
  uint64_t next_read_ = 1;
  int64_t parked_bytes_ = 0;
  TimePoint next_check_{}, next_told_{};
};

}  // namespace tandem::engine
