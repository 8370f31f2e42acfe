// Shapes and loads over which every planner must keep its promises.
#pragma once

#include <string>
#include <vector>

#include "experts/balance.h"
#include "tests/experts/synthetic_loads.h"

namespace tandem::experts {

struct PlanShape {
  EpTopology topology;
  int32_t num_logical = 0, num_groups = 1;
};

inline const PlanShape kPlanShapes[] = {
    {{2, 8, 5}, 32, 8},    // the usual case, small
    {{2, 8, 4}, 32, 8},    // R = E
    {{1, 16, 1}, 12, 4},   // S = 1
    {{1, 1, 12}, 8, 2},    // G = 1: replicas cannot be apart
    {{1, 1, 8}, 8, 2},     // G = 1 and R = E
    {{4, 16, 3}, 32, 8},   // few redundant slots over many ranks
    {{3, 9, 4}, 32, 8},    // nodes that do not divide the groups
    {{2, 4, 16}, 16, 4},   // every expert could be everywhere
    {{2, 2, 3}, 2, 2},     // more slots per rank than experts
    {{4, 4, 24}, 64, 8},   // one rank per node
    {{4, 32, 9}, 256, 8},  // 288 slots on 32 ranks
};

// Three layers, the first without load, as dense layers have it; seeds vary the rest. REQUIRES top_k <= num_logical.
inline ExpertLoad plan_load(const PlanShape& shape, LoadKind kind, uint64_t seed) {
  const LoadShape load_shape{.num_layers = 2,
                             .num_logical = shape.num_logical,
                             .top_k = std::min(8, std::max(1, shape.num_logical / 2)),
                             .tokens = int64_t(1) << (8 + 3 * (seed % 4))};
  ExpertLoad load = synthetic_load(kind, load_shape, seed);
  load.num_layers = 3;
  load.tokens.insert(load.tokens.begin(), size_t(shape.num_logical), 0);
  if (kind != LoadKind::kEqual || seed % 2 != 0) return load;
  for (int32_t i = 0; i < 2 * shape.num_logical; ++i) load.tokens[size_t(shape.num_logical + i)] = 1000;
  return load;
}

// visit(shape, load, description) over all shapes, kinds and a few seeds.
template <class Visit>
void for_each_load(Visit visit) {
  for (const PlanShape& shape : kPlanShapes) {
    for (LoadKind kind : kLoadKinds) {
      for (uint64_t seed = 0; seed < (shape.num_logical > 100 ? 1u : 6u); ++seed) {
        const std::string description = std::string(name_of(kind)) + ", seed " + std::to_string(seed) + ", " +
                                        std::to_string(shape.topology.num_slots()) + " slots on " +
                                        std::to_string(shape.topology.num_ranks) + " ranks";
        visit(shape, plan_load(shape, kind, seed), description);
      }
    }
  }
}

inline bool is_hierarchical(const BalanceAlgorithm& row) {
  return row.name.ends_with("hierarchical") || row.name == "elasticity_aware";
}

inline bool fits(const BalanceAlgorithm& row, const PlanShape& shape) {
  return !is_hierarchical(row) || shape.num_groups % shape.topology.num_nodes == 0;
}

inline ExpertPlacement must_plan(std::string_view name, const PlanShape& shape, const ExpertLoad& load) {
  return plan_experts(find_balance_algorithm(name).value(), {{&load, 1}, shape.topology, shape.num_groups}).value();
}

// visit(row, shape, load, placement) over every row of the table and every load that it can plan for. The caller adds
// a SCOPED_TRACE with the description.
template <class Visit>
void for_each_plan(Visit visit) {
  for_each_load([&](const PlanShape& shape, const ExpertLoad& load, const std::string& description) {
    for (const BalanceAlgorithm& row : balance_algorithms()) {
      if (!fits(row, shape)) continue;
      visit(row, shape, load, must_plan(row.name, shape, load), std::string(row.name) + ", " + description);
    }
  });
}

// FNV-1a over experts and shares, to compare whole plans.
inline uint64_t hash_of(const ExpertPlacement& placement) {
  uint64_t hash = 0xCBF29CE484222325;
  const auto add = [&](int32_t value) {
    for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ ((uint32_t(value) >> shift) & 0xFF)) * 0x100000001B3;
  };
  for (int32_t expert : placement.logical_of_slot) add(expert);
  for (int32_t share : placement.share) add(share);
  return hash;
}

}  // namespace tandem::experts
