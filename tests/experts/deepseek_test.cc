// The published planners, against their example and against slow transcriptions of what they do.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/experts/plan_fixture.h"

namespace tandem::experts {
namespace {

// The packing as published: scan all packs for each item.
std::vector<std::vector<int32_t>> slow_packing(const std::vector<float>& weights, size_t num_packs) {
  const size_t per_pack = weights.size() / num_packs;
  std::vector<std::vector<int32_t>> packs(num_packs);
  if (per_pack == 1) {
    for (size_t i = 0; i < num_packs; ++i) packs[i] = {int32_t(i)};
    return packs;
  }
  std::vector<float> filled(num_packs, 0);
  std::vector<bool> taken(weights.size(), false);
  for (size_t round = 0; round < weights.size(); ++round) {
    size_t item = weights.size();
    for (size_t i = 0; i < weights.size(); ++i) {
      if (!taken[i] && (item == weights.size() || weights[i] > weights[item])) item = i;
    }
    taken[item] = true;
    size_t pack = num_packs;
    for (size_t i = 0; i < num_packs; ++i) {
      if (packs[i].size() < per_pack && (pack == num_packs || filled[i] < filled[pack])) pack = i;
    }
    packs[pack].push_back(int32_t(item));
    filled[pack] += weights[item];
  }
  return packs;
}

std::vector<int32_t> slow_deepseek(std::span<const int64_t> tokens, const EpTopology& topology, int32_t num_groups,
                                   int32_t num_nodes) {
  const int32_t group_size = int32_t(tokens.size()) / num_groups;
  std::vector<float> group_weights;
  for (int32_t group = 0; group < num_groups; ++group) {
    double sum = 0;
    for (int32_t i = 0; i < group_size; ++i) sum += float(tokens[size_t(group * group_size + i)]);
    group_weights.push_back(float(sum));
  }
  std::vector<int32_t> slots;
  for (const std::vector<int32_t>& groups : slow_packing(group_weights, size_t(num_nodes))) {
    std::vector<int32_t> experts;
    for (int32_t group : groups) {
      for (int32_t i = 0; i < group_size; ++i) experts.push_back(group * group_size + i);
    }
    std::vector<int32_t> replicas(experts.size(), 1), copies(experts.size());
    std::iota(copies.begin(), copies.end(), 0);
    const auto weight = [&](size_t i) { return float(tokens[size_t(experts[i])]) / float(replicas[i]); };
    while (int32_t(copies.size()) < topology.num_slots() / num_nodes) {
      size_t hottest = 0;
      for (size_t i = 0; i < experts.size(); ++i) hottest = weight(i) > weight(hottest) ? i : hottest;
      copies.push_back(int32_t(hottest));
      replicas[hottest] += 1;
    }
    std::vector<float> weights;
    for (int32_t copy : copies) weights.push_back(weight(size_t(copy)));
    for (const std::vector<int32_t>& rank : slow_packing(weights, size_t(topology.num_ranks / num_nodes))) {
      for (int32_t item : rank) slots.push_back(experts[size_t(copies[size_t(item)])]);
    }
  }
  return slots;
}

std::vector<int32_t> row_of(const ExpertPlacement& placement, int32_t layer) {
  return {placement.layer(layer).begin(), placement.layer(layer).end()};
}

TEST(Deepseek, ReproducesThePublishedExample) {
  const ExpertLoad load{
      2, 12, {90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86, 20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}};
  for (std::string_view name : {"deepseek_hierarchical", "auto", "elasticity_aware"}) {
    const ExpertPlacement placement = must_plan(name, {{2, 8, 2}, 12, 4}, load);
    EXPECT_EQ(row_of(placement, 0), (std::vector<int32_t>{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1}));
    EXPECT_EQ(row_of(placement, 1), (std::vector<int32_t>{7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}));
  }
}

TEST(Deepseek, HeapsGiveWhatScanningGives) {
  for_each_load([](const PlanShape& shape, const ExpertLoad& load, const std::string& description) {
    const ExpertPlacement global = must_plan("deepseek", shape, load);
    for (int32_t layer = 0; layer < load.num_layers; ++layer) {
      ASSERT_EQ(row_of(global, layer), slow_deepseek(load.layer(layer), shape.topology, 1, 1)) << description;
    }
    if (shape.num_groups % shape.topology.num_nodes != 0) {
      ASSERT_EQ(must_plan("auto", shape, load), global) << description;
      return;
    }
    const ExpertPlacement local = must_plan("deepseek_hierarchical", shape, load);
    for (int32_t layer = 0; layer < load.num_layers; ++layer) {
      ASSERT_EQ(row_of(local, layer),
                slow_deepseek(load.layer(layer), shape.topology, shape.num_groups, shape.topology.num_nodes))
          << description;
    }
    ASSERT_EQ(must_plan("auto", shape, load), local) << description;
  });
}

TEST(Deepseek, LayersWithoutLoadGiveAllReplicasToExpertZero) {
  const ExpertPlacement placement = must_plan("deepseek", {{1, 4, 2}, 6, 1}, {1, 6, {0, 0, 0, 0, 0, 0}});
  EXPECT_EQ(slots_of_experts(placement, 0).of(0).size(), 3u);
}

TEST(DeepseekVec, DealsInSnakeOrderAndReplicatesTheHottest) {
  // 4 experts, 6 slots, 3 ranks: 60 gets a replica (30), then 40 (20). In order: 30 30 25 20 20 10.
  const ExpertPlacement placement = must_plan("deepseek_vec", {{1, 3, 2}, 4, 1}, {1, 4, {10, 60, 40, 25}});
  EXPECT_EQ(row_of(placement, 0), (std::vector<int32_t>{1, 0, 1, 2, 3, 2}));
}

TEST(DeepseekVec, SeesEveryStepAndNotOnlyTheSum) {
  // Expert 0 is hottest in sum, but never alone; expert 3 is the hottest of one step by far.
  const std::vector<ExpertLoad> steps{{1, 4, {50, 50, 10, 0}}, {1, 4, {50, 50, 10, 0}}, {1, 4, {10, 0, 0, 90}}};
  const auto replicated = [&](std::string_view name) {
    const ExpertPlacement placement = plan_experts(find_balance_algorithm(name).value(), {steps, {1, 5, 1}, 1}).value();
    for (int32_t expert = 0; expert < 4; ++expert) {
      if (slots_of_experts(placement, 0).of(expert).size() == 2) return expert;
    }
    return -1;
  };
  EXPECT_EQ(replicated("deepseek"), 0);
  EXPECT_EQ(replicated("deepseek_vec"), 3);
}

}  // namespace
}  // namespace tandem::experts
