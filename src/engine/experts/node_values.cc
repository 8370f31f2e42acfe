#include "engine/experts/node_values.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "experts/placement_hash.h"

namespace tandem::engine {

api::NodeExpertPlan plan_message(const experts::ExpertPlacement& target) {
  api::NodeExpertPlan plan;
  plan.digest = placement_hash(target);
  plan.num_layers = target.num_layers;
  plan.num_logical = target.num_logical;
  plan.num_slots = target.num_slots;
  plan.logical_of_slot = target.logical_of_slot;
  plan.share = target.share;
  return plan;
}

Result<experts::ExpertPlacement> read_plan(const api::NodeExpertPlan& plan, const experts::ExpertPlacement& current,
                                           const experts::EpTopology& topology) {
  if (plan.num_layers != current.num_layers || plan.num_logical != current.num_logical ||
      plan.num_slots != current.num_slots) {
    return invalid_input(fmt::format("a plan for {} layers of {} experts in {} slots, wanted {} of {} in {}",
                                     plan.num_layers, plan.num_logical, plan.num_slots, current.num_layers,
                                     current.num_logical, current.num_slots));
  }
  experts::ExpertPlacement target{plan.num_layers, plan.num_logical, plan.num_slots, plan.logical_of_slot, plan.share};
  RETURN_IF_ERROR(validate(target, topology));
  const uint64_t digest = placement_hash(target);
  if (digest != plan.digest) {
    return corrupt(fmt::format("the plan has digest {:016x}, it came as {:016x}", digest, plan.digest));
  }
  return target;
}

ExpertRecording sum_recordings(std::span<const ExpertRecording> ranks, size_t cells) {
  std::map<uint64_t, size_t> num_ranks;  // by step
  for (const ExpertRecording& rank : ranks) {
    for (const uint64_t step : rank.steps) num_ranks[step] += 1;
  }
  ExpertRecording sum;
  std::map<uint64_t, size_t> row_of;
  for (const auto& [step, count] : num_ranks) {
    if (count != ranks.size()) continue;
    row_of[step] = sum.steps.size();
    sum.steps.push_back(step);
  }
  sum.counts.resize(sum.steps.size() * cells);
  for (const ExpertRecording& rank : ranks) {
    for (size_t i = 0; i < rank.steps.size(); ++i) {
      const auto row = row_of.find(rank.steps[i]);
      if (row == row_of.end()) continue;
      for (size_t c = 0; c < cells; ++c) sum.counts[row->second * cells + c] += rank.counts[i * cells + c];
    }
  }
  return sum;
}

// From the end, so that what stays need not move.
void move_steps(ExpertRecording& from, size_t cells, size_t max_bytes, api::NodeExpertAnswer& answer) {
  const size_t most = std::max<size_t>(1, max_bytes / (cells * sizeof(int32_t)));
  const size_t left = from.steps.size() - std::min(most, from.steps.size());
  answer.steps.assign(from.steps.begin() + ptrdiff_t(left), from.steps.end());
  answer.counts.assign(from.counts.begin() + ptrdiff_t(left * cells), from.counts.end());
  from.steps.resize(left);
  from.counts.resize(left * cells);
  answer.steps_left = left;
}

}  // namespace tandem::engine
