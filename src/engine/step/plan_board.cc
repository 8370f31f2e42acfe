#include "engine/plan_board.h"

#include "base/check.h"

namespace tandem::engine {

void PlanBoard::write(uint64_t step, const model::ForwardBatch& batch, int32_t block_tokens) {
  Plan& plan = plans_[step % 2];
  plan.step = step;
  plan.phase = batch.phase;
  plan.token_ids.assign(batch.token_ids.begin(), batch.token_ids.end());
  plan.positions.assign(batch.positions.begin(), batch.positions.end());
  plan.slots.assign(batch.slots.begin(), batch.slots.end());
  plan.logit_rows.assign(batch.logit_rows.begin(), batch.logit_rows.end());
  plan.sequences.assign(batch.sequences.begin(), batch.sequences.end());
  const auto table_size = [&](const kernels::SequenceSpan& sequence) {
    return size_t((sequence.prefix_len + sequence.num_rows + block_tokens - 1) / block_tokens);
  };
  plan.blocks.clear();
  for (const kernels::SequenceSpan& sequence : batch.sequences) {
    plan.blocks.insert(plan.blocks.end(), sequence.block_table, sequence.block_table + table_size(sequence));
  }
  const int32_t* table = plan.blocks.data();  // where they stay
  for (kernels::SequenceSpan& sequence : plan.sequences) {
    sequence.block_table = table;
    table += table_size(sequence);
  }
}

model::ForwardBatch PlanBoard::read(uint64_t step) const {
  const Plan& plan = plans_[step % 2];
  CHECK(plan.step == step);
  model::ForwardBatch batch;
  batch.phase = plan.phase;
  batch.token_ids = plan.token_ids;
  batch.positions = plan.positions;
  batch.slots = plan.slots;
  batch.sequences = plan.sequences;
  batch.logit_rows = plan.logit_rows;
  return batch;
}

}  // namespace tandem::engine
