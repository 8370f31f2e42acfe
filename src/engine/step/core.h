// Core: what every kind of worker shares on one rank: the pool, the prefix tree, the table of requests, and the one
// function through which every request ends. Owner: the engine thread.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "engine/engine.h"
#include "engine/step/request.h"
#include "engine/step/stats.h"
#include "kernels/sample.h"
#include "scheduler/block_pool.h"
#include "scheduler/prefix_tree.h"

namespace tandem::engine {

class Core {
 public:
  Core(const EngineConfig& config, const EngineParts& parts, std::function<void(api::EngineEvent)> sink);
  ~Core();
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  TimePoint now() const { return parts.clock->now(); }

  // Takes the request in and returns it, or answers it at once with an abort and returns null (too long, no ids ...).
  Request* admit(api::EngineRequest input, scheduler::LifeKind kind);
  Request* find(RequestId id) const;
  size_t num_requests() const { return requests_.size(); }
  int64_t urgency(const Request& request) const;  // more goes first; the same for all without priority scheduling
  // Into a queue that is kept by urgency: behind its equals, or (it was here before) in front of them.
  void enqueue(std::deque<Request*>& queue, Request& request, bool first_of_its_urgency = false) const;

  // The end of a request, whatever it is: its terminal state, its last event, and everything it holds. While the
  // request is part of a step the end is only noted; take_pending_ends() brings it after the step. last: tokens and
  // log-probabilities to go out with the final event.
  void end(Request& request, Ending ending, api::EngineEvent last = {});
  void end_all(const Ending& ending);
  // The answer to a request that was never taken in.
  void answer(api::EngineEvent event, Ending ending);
  // News of a request that goes on.
  void emit(Request& request, api::EngineEvent event);
  void leave_step(Request& request);  // clears in_step and applies a noted end
  // A drawn token: appended, checked against the finish rules, sent. False: the request ended with it.
  bool take_token(Request& request, const kernels::SampleResult& drawn);

  // Requests that ended stay readable until here; workers drop their pointers first. True: something had ended.
  bool has_ended() const { return !ended_.empty(); }
  void bury() { ended_.clear(); }

  // Blocks.
  int64_t available_blocks() const;  // free and evictable
  Result<scheduler::BlockLease> lease(int32_t num_blocks);
  Status extend(scheduler::BlockLease& lease, int32_t num_blocks);
  int32_t blocks_for(int32_t num_tokens) const;
  int64_t used_tokens() const;  // neither free nor evictable, in whole blocks
  // Looks the prompt up in the prefix cache; at least one token is left to compute.
  int32_t match_prefix(const Request& request) const;
  // Two steps, so that no lease of one request evicts what another of the same plan was found to have: holds the cached
  // prefix; then leases the rest of num_tokens and fills the block table. kExhausted: lets go of the prefix again.
  void hold_prefix(Request& request);
  Status reserve(Request& request, int32_t num_tokens);
  // One more block at the end, if num_tokens needs it.
  Status grow(Request& request, int32_t num_tokens);
  // Gives the blocks back; what was computed stays as cache where that is allowed.
  void release_blocks(Request& request, bool keep_as_cache);
  // Frees all that is only cached. False while requests are there.
  bool flush_cache();

  // Blocks named by reads that still fly after their request ended.
  struct Drained {
    scheduler::BlockLease lease;
    size_t reads = 0;
  };
  void read_ended(uint64_t read_id);
  Request* reader_of(uint64_t read_id) const;  // null: it ended
  void read_posted(uint64_t read_id, RequestId id) { reader_of_read_[read_id] = id; }
  size_t num_draining() const { return draining_.size(); }

  // Told of every end before anything is released; set once by the worker.
  std::function<void(Request&, const Ending&)> on_end;
  const EngineConfig config;
  const EngineParts parts;
  const int32_t vocab_size;
  const int32_t max_request_tokens;  // prompt and output
  SchedulerMetrics metrics;
  scheduler::BlockPool pool;
  std::optional<scheduler::PrefixTree> tree;
  // Totals for the snapshot.
  uint64_t prompt_tokens_computed = 0, prompt_tokens_cached = 0, handover_bytes = 0, handovers = 0;
  uint64_t decode_steps = 0, prefill_steps = 0, generated_tokens = 0, decode_step_us = 0, prefill_step_us = 0;
  double last_gen_throughput = 0;

 private:
  void release(Request& request, const Ending& ending);
  const std::function<void(api::EngineEvent)> sink_;
  std::unordered_map<RequestId, std::unique_ptr<Request>> requests_;
  std::vector<std::unique_ptr<Request>> ended_;
  std::unordered_map<uint64_t, RequestId> reader_of_read_;
  std::unordered_map<RequestId, Drained> draining_;
  uint64_t arrivals_ = 0;
};

}  // namespace tandem::engine
