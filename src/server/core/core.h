// Core: what all endpoints share. Held by a shared_ptr so that posted tasks and writers' callbacks can ask whether it
// still lives; loop's thread.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <unordered_map>

#include "server/core/engine_port.h"
#include "server/core/generation.h"
#include "server/core/inbox.h"
#include "server/core/intake.h"
#include "server/core/prepare.h"
#include "server/server.h"

namespace tandem::server {

using Writer = std::shared_ptr<net::ResponseWriter>;

class Core : public std::enable_shared_from_this<Core> {
 public:
  Core(ServerConfig config, ServerParts parts);

  const ServerConfig& config() const { return config_; }
  const ServerParts& parts() const { return parts_; }
  net::EventLoop& loop() { return *parts_.loop; }
  const Clock& clock() const { return *parts_.clock; }
  EnginePort& port() { return port_; }
  Inbox& inbox() { return *inbox_; }
  const std::shared_ptr<Inbox>& shared_inbox() const { return inbox_; }
  bool draining() const { return draining_; }
  bool ready() const { return port_.engine() && !draining_; }

  // A generation request of any dialect: answers it, now or later.
  void generate(api::Dialect dialect, net::HttpRequest request, Writer writer);
  // Work of a body that would stall the loop if it is large: compute() then runs on the intake thread and reply(result)
  // on the loop's.
  void compute_then_reply(size_t body_bytes, Writer writer, std::function<net::HttpResponse()> compute);
  // One token, to see whether the engine lives: done(alive) once.
  void probe(std::function<void(bool alive)> done);

  void abort(const std::string& rid_prefix);
  void drain();
  void fail_all(const std::string& message);
  size_t active() const { return active_->load(); }
  // The end: events are dropped, the intake thread is joined. Answers still open are left to the HTTP server.
  void close();

 private:
  struct Where {
    std::shared_ptr<Generation> generation;
    size_t sequence;
  };
  struct Probe {
    std::function<void(bool)> done;
    RequestId id;
    uint64_t forward_steps = 0, events = 0;
    TimePoint deadline;
  };
  // Counts a generation request as active until the last copy is gone.
  using ActiveToken = std::shared_ptr<void>;

  ActiveToken count_active();
  void admit(Prepared prepared, double received_ts, const Writer& writer, ActiveToken active);
  // Null: as `like`.
  std::shared_ptr<const SequenceOptions> sequence_options(const api::Call& call, size_t index,
                                                          const SequenceOptions* like) const;
  std::vector<Sequence> make_sequences(const api::Call& call);
  Answer make_answer(const api::Call& call, const std::vector<Sequence>& sequences, double received_ts) const;
  api::EngineRequest make_request(api::Call& call, const Sequence& sequence);
  bool submit(api::Call& call, const std::shared_ptr<Generation>& generation);
  void on_events(std::vector<api::EngineEvent>& events);
  // Writes what a generation has gathered, and forgets it if that was all.
  void settle(const std::shared_ptr<Generation>& generation);
  void give_back_soon();
  void abandon(Generation& generation, engine::CancelReason reason);
  void forget(Generation& generation);
  void check_probes();
  std::string draw_rid();

  ServerConfig config_;
  ServerParts parts_;
  EnginePort port_;
  std::shared_ptr<Inbox> inbox_;
  std::optional<FrontMetrics> metrics_;
  PrepareParts prepare_;
  api::TokenText token_text_;
  std::mt19937_64 random_;
  std::unordered_map<uint64_t, Where> open_;  // by RequestId: sequences without their last event
  std::shared_ptr<std::atomic<size_t>> active_ = std::make_shared<std::atomic<size_t>>(0);
  uint64_t next_id_ = 1;
  uint64_t events_seen_ = 0;
  size_t freed_sequences_ = 0;  // of calls of many, since freed memory was given back
  bool draining_ = false;
  std::vector<Probe> probes_;
  std::shared_ptr<net::EventLoop::Timer> probe_timer_, give_back_timer_;
  std::unique_ptr<Intake> intake_;  // last: its jobs use the members above
};

}  // namespace tandem::server
