// CombinedWorker: prefill and decode on one rank, prefill first (--disaggregation-mode null). Owner: the engine thread.
// Every worker has the same verbs; the engine's loop calls them through a variant.
#pragma once

#include "engine/roles/prefill_queue.h"
#include "engine/roles/reporter.h"
#include "engine/roles/running_set.h"

namespace tandem::engine {

class CombinedWorker {
 public:
  explicit CombinedWorker(Core& core);

  void submit(api::EngineRequest input);
  // Ends the request wherever it is.
  void cancel(Request& request, const CancelCommand& command);
  bool take_reports() { return false; }  // no transfer side
  void tick() {}                         // deadlines, admission
  // The next step of this rank; may stay empty. holds_decode: prompts only.
  void form(Batch& batch, bool holds_decode);
  void before_forward(const Batch& batch) {
    if (batch.kind() == parallel::StepKind::kExtend) prefill_.before_forward(batch);
  }
  void layer_done(const Batch&, int32_t) {}
  void after_step(const Batch& batch, const Sampler& sampler);
  void forget_ended();
  LoadFigures load() const;
  int64_t waiting_tokens() const { return prefill_.waiting_tokens(); }
  void idle() { reporter_.idle(load(), running_.new_token_ratio()); }

 private:
  void retract(Request& request);
  bool make_queue_place(const Request& newcomer);
  void preempt();
  void after_prefill(const Batch& batch, const Sampler& sampler);
  Core& core_;
  PrefillQueue prefill_;
  RunningSet running_;
  Reporter reporter_;
};

// The end that a cancel asks for. `started`: it has produced or may be producing output.
Ending ending_of(const CancelCommand& command, bool started);

}  // namespace tandem::engine
