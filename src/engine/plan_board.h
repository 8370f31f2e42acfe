// PlanBoard: how the ranks of one attention tensor-parallel group come to run the same batches. Their first rank, the
// leader, schedules; before it votes for a step it writes the step's batch here as a value. The others vote without a
// batch of their own, and read this one when the step is decided: by then it is there.
//
// Two plans, used alternately, need no lock: whoever writes step s+2 has seen every rank vote for s+1, and a rank votes
// for s+1 only when it is done with s. The values are the board's own, so that a reader that is late, and given up by
// the others, reads nothing that is gone.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "model/model.h"

namespace tandem::engine {

class PlanBoard {
 public:
  // The leader's engine thread, before its vote for the step. An empty batch is a plan, too.
  void write(uint64_t step, const model::ForwardBatch& batch, int32_t block_tokens);
  // The other ranks' engine threads, from the decision for the step to their next vote. Without what only the leader
  // wants: logits, counts. CHECKs that the plan is the step's.
  model::ForwardBatch read(uint64_t step) const;

 private:
  struct Plan {
    uint64_t step = ~uint64_t(0);
    model::Phase phase = model::Phase::kPrefill;
    std::vector<int32_t> token_ids, positions, slots, logit_rows;
    std::vector<kernels::SequenceSpan> sequences;
    std::vector<int32_t> blocks;  // the sequences' tables, one after another
  };
  std::array<Plan, 2> plans_;
};

}  // namespace tandem::engine
