#include <algorithm>
#include <functional>
#include <numeric>
#include <queue>

#include "base/check.h"
#include "experts/algorithms/rows.h"

namespace tandem::experts {
namespace {

struct Packing {
  std::vector<int32_t> pack, position;  // of each item
};

// Items into num_packs packs of equally many: the heaviest first, into the lightest pack with room.
Packing pack_lightest_first(std::span<const float> weights, int32_t num_packs) {
  const int32_t num_items = int32_t(weights.size());
  std::vector<int32_t> order(weights.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return weights[size_t(a)] > weights[size_t(b)]; });
  using Pack = std::pair<float, int32_t>;  // weight, index: the top is the lightest, the lower index among equals
  std::priority_queue<Pack, std::vector<Pack>, std::greater<Pack>> open;
  for (int32_t pack = 0; pack < num_packs; ++pack) open.push({0.0f, pack});
  Packing packing{std::vector<int32_t>(weights.size()), std::vector<int32_t>(weights.size())};
  std::vector<int32_t> count(size_t(num_packs), 0);
  for (int32_t item : order) {
    const auto [weight, pack] = open.top();
    open.pop();
    packing.pack[size_t(item)] = pack;
    packing.position[size_t(item)] = count[size_t(pack)]++;
    if (count[size_t(pack)] < num_items / num_packs) open.push({weight + weights[size_t(item)], pack});
  }
  return packing;
}

Packing pack(std::span<const float> weights, int32_t num_packs, bool identity_if_even) {
  if (!identity_if_even || int32_t(weights.size()) != num_packs) return pack_lightest_first(weights, num_packs);
  Packing packing{std::vector<int32_t>(weights.size()), std::vector<int32_t>(weights.size(), 0)};
  std::iota(packing.pack.begin(), packing.pack.end(), 0);
  return packing;
}

// The expert of each of num_slots slots, and how many slots each expert has.
struct Replication {
  std::vector<int32_t> expert_of_slot, count;
};

Replication replicate(std::span<const float> weights, int32_t num_slots) {
  Replication result{std::vector<int32_t>(weights.size()), std::vector<int32_t>(weights.size(), 1)};
  std::iota(result.expert_of_slot.begin(), result.expert_of_slot.end(), 0);
  using Score = std::pair<float, int32_t>;  // load per replica, minus the expert: the lower expert among equals
  std::priority_queue<Score> scores;
  for (size_t expert = 0; expert < weights.size(); ++expert) scores.push({weights[expert], -int32_t(expert)});
  while (int32_t(result.expert_of_slot.size()) < num_slots) {
    const int32_t expert = -scores.top().second;
    scores.pop();
    result.expert_of_slot.push_back(expert);
    result.count[size_t(expert)] += 1;
    scores.push({weights[size_t(expert)] / float(result.count[size_t(expert)]), -expert});
  }
  return result;
}

// One layer: slots[i] for i in [0, num_slots).
void plan_layer(std::span<const int64_t> tokens, const EpTopology& topology, int32_t num_groups, int32_t num_nodes,
                std::span<int32_t> slots) {
  const std::vector<int32_t> original = experts_by_node(tokens, num_groups, num_nodes, true);
  const size_t experts_per_node = tokens.size() / size_t(num_nodes);
  const int32_t slots_per_node = topology.num_slots() / num_nodes;
  for (int32_t node = 0; node < num_nodes; ++node) {
    const std::span<const int32_t> experts(original.data() + size_t(node) * experts_per_node, experts_per_node);
    std::vector<float> weights;
    for (int32_t expert : experts) weights.push_back(float(tokens[size_t(expert)]));
    const Replication replication = replicate(weights, slots_per_node);
    std::vector<float> slot_weights;
    for (int32_t expert : replication.expert_of_slot) {
      slot_weights.push_back(weights[size_t(expert)] / float(replication.count[size_t(expert)]));
    }
    const Packing packing = pack(slot_weights, topology.num_ranks / num_nodes, true);
    for (size_t i = 0; i < slot_weights.size(); ++i) {
      const int32_t slot = node * slots_per_node + packing.pack[i] * topology.slots_per_rank + packing.position[i];
      slots[size_t(slot)] = experts[size_t(replication.expert_of_slot[i])];
    }
  }
}

ExpertPlacement plan_layers(const BalanceProblem& problem, int32_t num_groups, int32_t num_nodes) {
  const ExpertLoad load = sum_of(problem.steps);
  ExpertPlacement placement{load.num_layers, load.num_logical, problem.topology.num_slots(), {}, {}};
  placement.logical_of_slot.resize(size_t(placement.num_layers) * size_t(placement.num_slots));
  for (int32_t layer = 0; layer < load.num_layers; ++layer) {
    const std::span<int32_t> slots(placement.logical_of_slot.data() + size_t(layer) * size_t(placement.num_slots),
                                   size_t(placement.num_slots));
    plan_layer(load.layer(layer), problem.topology, num_groups, num_nodes, slots);
  }
  return placement;
}

}  // namespace

std::vector<int32_t> experts_by_node(std::span<const int64_t> tokens, int32_t num_groups, int32_t num_nodes,
                                     bool identity_if_even) {
  const size_t group_size = tokens.size() / size_t(num_groups);
  std::vector<float> weights(size_t(num_groups), 0.0f);
  for (size_t group = 0; group < weights.size(); ++group) {
    double sum = 0;
    for (int64_t count : tokens.subspan(group * group_size, group_size)) sum += double(float(count));
    weights[group] = float(sum);
  }
  const Packing packing = pack(weights, num_nodes, identity_if_even);
  const int32_t groups_per_node = num_groups / num_nodes;
  std::vector<int32_t> original(tokens.size());
  for (size_t group = 0; group < weights.size(); ++group) {
    const size_t first = size_t(packing.pack[group] * groups_per_node + packing.position[group]) * group_size;
    for (size_t i = 0; i < group_size; ++i) original[first + i] = int32_t(group * group_size + i);
  }
  return original;
}

std::vector<int32_t> deepseek_layer(std::span<const int64_t> tokens, const EpTopology& topology) {
  std::vector<int32_t> slots(size_t(topology.num_slots()));
  plan_layer(tokens, topology, 1, 1, slots);
  return slots;
}

Result<ExpertPlacement> deepseek_global(const BalanceProblem& problem) { return plan_layers(problem, 1, 1); }

Result<ExpertPlacement> deepseek_hierarchical(const BalanceProblem& problem) {
  RETURN_IF_ERROR(check_groups(problem));
  return plan_layers(problem, problem.num_groups, problem.topology.num_nodes);
}

Result<ExpertPlacement> deepseek_auto(const BalanceProblem& problem) {
  return check_groups(problem) ? deepseek_hierarchical(problem) : deepseek_global(problem);
}

}  // namespace tandem::experts
