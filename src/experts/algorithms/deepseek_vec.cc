#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "experts/algorithms/rows.h"

namespace tandem::experts {
namespace {

// The experts of one node (or all) in one layer.
struct Chunk {
  std::span<const int32_t> experts;  // original ids
  int32_t first_index = 0;           // of its first expert in the renumbered order; breaks ties
};

using Loads = std::vector<std::vector<float>>;  // [steps][experts of the chunk]

size_t first_largest(std::span<const float> values) {
  return size_t(std::max_element(values.begin(), values.end()) - values.begin());
}

// The expert (within the chunk) whose next replica lowers the sum over steps of the largest load per replica the most.
size_t next_to_replicate(const Loads& loads, std::span<const int32_t> count, int32_t first_index) {
  const size_t num_experts = count.size();
  std::vector<float> sums(num_experts, 0.0f), scores(num_experts);
  for (const std::vector<float>& load : loads) {
    for (size_t i = 0; i < num_experts; ++i) {
      scores[i] = (load[i] + float(first_index + int32_t(i)) * 1e-4f) / float(count[i]);
    }
    const size_t hottest = first_largest(scores);
    const float before = scores[hottest];
    scores[hottest] = load[hottest] / float(count[hottest] + 1);
    const float after = *std::max_element(scores.begin(), scores.end());
    for (size_t i = 0; i < num_experts; ++i) sums[i] += i == hottest ? after : before;
  }
  return size_t(std::min_element(sums.begin(), sums.end()) - sums.begin());
}

void plan_chunk(std::span<const ExpertLoad> steps, int32_t layer, const Chunk& chunk, int32_t slots_per_rank,
                std::span<int32_t> slots) {
  Loads loads;
  std::vector<int64_t> total(chunk.experts.size(), 0);
  for (const ExpertLoad& step : steps) {
    loads.emplace_back();
    for (size_t i = 0; i < chunk.experts.size(); ++i) {
      const int64_t tokens = step.layer(layer)[size_t(chunk.experts[i])];
      loads.back().push_back(float(tokens));
      total[i] += tokens;
    }
  }
  std::vector<int32_t> count(chunk.experts.size(), 1);
  std::vector<size_t> expert_of_slot(chunk.experts.size());
  std::iota(expert_of_slot.begin(), expert_of_slot.end(), size_t(0));
  while (expert_of_slot.size() < slots.size()) {
    const size_t expert = next_to_replicate(loads, count, chunk.first_index);
    expert_of_slot.push_back(expert);
    count[expert] += 1;
  }
  std::vector<size_t> order(slots.size());
  std::iota(order.begin(), order.end(), size_t(0));
  if (slots_per_rank > 1) {
    std::vector<float> scores;
    for (size_t expert : expert_of_slot) scores.push_back(float(total[expert]) / float(count[expert]));
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
  }
  const size_t num_ranks = slots.size() / size_t(slots_per_rank);
  for (size_t i = 0; i < order.size(); ++i) {
    const size_t row = i / num_ranks, column = i % num_ranks;
    const size_t rank = row % 2 == 0 ? column : num_ranks - 1 - column;
    slots[rank * size_t(slots_per_rank) + row] = chunk.experts[expert_of_slot[order[i]]];
  }
}

ExpertPlacement plan_layers(const BalanceProblem& problem, int32_t num_groups, int32_t num_chunks) {
  const ExpertLoad load = sum_of(problem.steps);
  ExpertPlacement placement{load.num_layers, load.num_logical, problem.topology.num_slots(), {}, {}};
  placement.logical_of_slot.resize(size_t(placement.num_layers) * size_t(placement.num_slots));
  const size_t experts_per_chunk = size_t(load.num_logical / num_chunks);
  const size_t slots_per_chunk = size_t(placement.num_slots / num_chunks);
  for (int32_t layer = 0; layer < load.num_layers; ++layer) {
    const std::vector<int32_t> original = experts_by_node(load.layer(layer), num_groups, num_chunks, false);
    for (size_t chunk = 0; chunk < size_t(num_chunks); ++chunk) {
      const size_t first_slot = size_t(layer) * size_t(placement.num_slots) + chunk * slots_per_chunk;
      plan_chunk(problem.steps, layer,
                 {std::span(original).subspan(chunk * experts_per_chunk, experts_per_chunk),
                  int32_t(chunk * experts_per_chunk)},
                 problem.topology.slots_per_rank, {placement.logical_of_slot.data() + first_slot, slots_per_chunk});
    }
  }
  return placement;
}

}  // namespace

Result<ExpertPlacement> deepseek_vec(const BalanceProblem& problem) { return plan_layers(problem, 1, 1); }

Result<ExpertPlacement> deepseek_vec_hierarchical(const BalanceProblem& problem) {
  RETURN_IF_ERROR(check_groups(problem));
  return plan_layers(problem, problem.num_groups, problem.topology.num_nodes);
}

}  // namespace tandem::experts
