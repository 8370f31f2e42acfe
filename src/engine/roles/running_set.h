// RunningSet: the requests that produce one token per decode step. Used by combined and decode workers.
// Owner: the engine thread.
#pragma once

#include <functional>
#include <vector>

#include "engine/step/batch.h"
#include "engine/step/core.h"
#include "engine/step/sampler.h"
#include "scheduler/decode_plan.h"

namespace tandem::engine {

class RunningSet {
 public:
  explicit RunningSet(Core& core);

  void add(Request& request);  // state kRunning; its newest token has no cache row yet
  std::span<Request* const> requests() const { return running_; }
  int32_t size() const { return int32_t(running_.size()); }

  // Fills the batch with one token of each running request that has room for its row. Where blocks are missing,
  // retract(victim) is called, which must take the victim's blocks and move it out of kRunning (or kArrived, for the
  // others that may give way), until the rest fits or one is left.
  void form(Batch& batch, std::span<Request* const> others_that_may_give_way,
            const std::function<void(Request&)>& retract);
  // After forward and sampling: appends tokens, ends what ends.
  void after_step(const Batch& batch, const Sampler& sampler);

  // Blocks that the running requests are expected to need, by the current new-token ratio.
  int64_t expected_growth_blocks() const;
  double new_token_ratio() const { return ratio_.value(); }
  void forget_ended();  // drops what is no longer kRunning

 private:
  int32_t make_room(std::span<Request* const> others, const std::function<void(Request&)>& retract);
  Core& core_;
  std::vector<Request*> running_;
  std::vector<scheduler::RunningSequence> sequences_;  // scratch
  scheduler::NewTokenRatio ratio_;
};

}  // namespace tandem::engine
