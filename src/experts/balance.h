// Fresh placements from counted loads: the visible table of planners. A planner is a pure function; it runs in one
// process, and the others get its plan. Any thread; values.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/result.h"
#include "experts/placement.h"

namespace tandem::experts {

struct BalanceProblem {
  // Loads of equal layers and experts, oldest first. All planners but deepseek_vec* see only their sum.
  std::span<const ExpertLoad> steps;
  EpTopology topology;
  int32_t num_groups = 1;  // the model's routing groups, for the planners that keep a group on one node
};

// Errors: kInvalidInput where the planner asks for more than check_problem(), such as groups that divide over nodes.
using BalanceFn = Result<ExpertPlacement> (*)(const BalanceProblem& problem);

struct BalanceAlgorithm {
  std::string_view name;  // of --eplb-algorithm
  BalanceFn plan;
};

// The rows, in the order in which help texts list them.
std::span<const BalanceAlgorithm> balance_algorithms();

// kInvalidInput with the names that exist.
Result<BalanceAlgorithm> find_balance_algorithm(std::string_view name);

// kInvalidInput: no steps, steps of different sizes, negative or absurd loads, fewer slots than experts.
Status check_problem(const BalanceProblem& problem);

// check_problem(), the planner, and validate() on what it made. This is the entry point.
Result<ExpertPlacement> plan_experts(const BalanceAlgorithm& algorithm, const BalanceProblem& problem);

// Sum of loads of equal size. REQUIRES at least one.
ExpertLoad sum_of(std::span<const ExpertLoad> steps);

}  // namespace tandem::experts
