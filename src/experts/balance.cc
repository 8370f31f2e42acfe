#include "experts/balance.h"

#include <fmt/format.h>

#include "base/check.h"
#include "experts/algorithms/rows.h"

namespace tandem::experts {
namespace {

// elasticity_aware with every rank alive is the hierarchical planner, whatever the node count.
constexpr BalanceAlgorithm kAlgorithms[] = {
    {"auto", deepseek_auto},
    {"deepseek", deepseek_global},
    {"deepseek_hierarchical", deepseek_hierarchical},
    {"deepseek_vec", deepseek_vec},
    {"deepseek_vec_hierarchical", deepseek_vec_hierarchical},
    {"elasticity_aware", deepseek_hierarchical},
    {"tandem", tandem_global},
    {"tandem_hierarchical", tandem_hierarchical},
};

constexpr int64_t kMaxTokensPerLayer = int64_t(1) << 60;

Status check_load(const ExpertLoad& load, const ExpertLoad& first) {
  if (load.num_layers != first.num_layers || load.num_logical != first.num_logical) {
    return invalid_input(fmt::format("a load of {} layers of {} experts follows one of {} layers of {} experts",
                                     load.num_layers, load.num_logical, first.num_layers, first.num_logical));
  }
  if (load.num_layers < 0 || load.num_logical < 1 ||
      load.tokens.size() != size_t(load.num_layers) * size_t(load.num_logical)) {
    return invalid_input(fmt::format("a load of {} layers of {} experts has {} counts", load.num_layers,
                                     load.num_logical, load.tokens.size()));
  }
  return Ok{};
}

// The sum over all steps of one layer stays far from the end of int64.
Status check_tokens(std::span<const ExpertLoad> steps, int32_t layer) {
  int64_t left = kMaxTokensPerLayer;
  for (const ExpertLoad& load : steps) {
    for (int64_t tokens : load.layer(layer)) {
      if (tokens < 0 || tokens > left) {
        return invalid_input(fmt::format("layer {}: an expert's count is {}", layer, tokens));
      }
      left -= tokens;
    }
  }
  return Ok{};
}

}  // namespace

std::span<const BalanceAlgorithm> balance_algorithms() { return kAlgorithms; }

Result<BalanceAlgorithm> find_balance_algorithm(std::string_view name) {
  std::string names;
  for (const BalanceAlgorithm& row : kAlgorithms) {
    if (row.name == name) return row;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", row.name);
  }
  return invalid_input(fmt::format("there is no balance algorithm '{}'; there are: {}", name, names));
}

Status check_problem(const BalanceProblem& problem) {
  if (problem.steps.empty()) return invalid_input("there is no load to plan for");
  const ExpertLoad& first = problem.steps.front();
  for (const ExpertLoad& load : problem.steps) RETURN_IF_ERROR(check_load(load, first));
  for (int32_t layer = 0; layer < first.num_layers; ++layer) RETURN_IF_ERROR(check_tokens(problem.steps, layer));
  const EpTopology& topology = problem.topology;
  if (topology.num_nodes < 1 || topology.num_ranks < 1 || topology.num_ranks % topology.num_nodes != 0) {
    return invalid_input(fmt::format("{} ranks do not divide over {} nodes", topology.num_ranks, topology.num_nodes));
  }
  if (topology.num_slots() < first.num_logical) {
    return invalid_input(fmt::format("{} ranks of {} slots cannot hold {} experts", topology.num_ranks,
                                     topology.slots_per_rank, first.num_logical));
  }
  return Ok{};
}

Status check_groups(const BalanceProblem& problem) {
  const int32_t num_logical = problem.steps.front().num_logical;
  if (problem.num_groups < 1 || num_logical % problem.num_groups != 0) {
    return invalid_input(fmt::format("{} experts do not divide over {} groups", num_logical, problem.num_groups));
  }
  if (problem.num_groups % problem.topology.num_nodes != 0) {
    return invalid_input(
        fmt::format("{} groups do not divide over {} nodes", problem.num_groups, problem.topology.num_nodes));
  }
  return Ok{};
}

Result<ExpertPlacement> plan_experts(const BalanceAlgorithm& algorithm, const BalanceProblem& problem) {
  RETURN_IF_ERROR(check_problem(problem));
  ASSIGN_OR_RETURN(ExpertPlacement placement, algorithm.plan(problem));
  RETURN_IF_ERROR(validate(placement, problem.topology));
  return placement;
}

ExpertLoad sum_of(std::span<const ExpertLoad> steps) {
  CHECK(!steps.empty());
  ExpertLoad sum = steps.front();
  for (const ExpertLoad& load : steps.subspan(1)) {
    CHECK(load.tokens.size() == sum.tokens.size());
    for (size_t i = 0; i < sum.tokens.size(); ++i) sum.tokens[i] += load.tokens[i];
  }
  return sum;
}

}  // namespace tandem::experts
