// The planners behind the table in experts/balance.cc. All REQUIRE check_problem().
#pragma once

#include "experts/balance.h"

namespace tandem::experts {

// DeepSeek's published planner, bit for bit (deepseek-ai/EPLB): replicate by the largest load per replica, pack the
// heaviest replica first into the lightest rank with room. Weights are float32 there, so they are here: one division
// per score and one addition per packed replica, both fixed by IEEE 754. Ties go to the lower index and sorting is
// stable; that reproduces the published example. The sum of a group's loads, whose order the published code leaves to
// its library, is taken exactly and rounded once. The result may put two replicas on one rank. Shares stay equal.
Result<ExpertPlacement> deepseek_global(const BalanceProblem& problem);
// Each routing group on one node. kInvalidInput unless nodes divide groups and groups divide experts.
Result<ExpertPlacement> deepseek_hierarchical(const BalanceProblem& problem);
// Hierarchical where the nodes divide the groups, else global.
Result<ExpertPlacement> deepseek_auto(const BalanceProblem& problem);

// The variant that sees every step by itself: a replica goes where it lowers the sum over steps of the largest load per
// replica, and replicas are dealt to ranks in snake order. float32 as above; sums over steps are taken in step order.
// kInvalidInput unless experts and redundant slots divide over the nodes (hierarchical).
Result<ExpertPlacement> deepseek_vec(const BalanceProblem& problem);
Result<ExpertPlacement> deepseek_vec_hierarchical(const BalanceProblem& problem);

// Ours: integers only, no two replicas of an expert on a rank where avoidable, local search, then uneven shares. A
// layer is never less balanced than by deepseek_global (where a rank has no more slots than there are experts).
Result<ExpertPlacement> tandem_global(const BalanceProblem& problem);
// Ours with each routing group on one node; errors as deepseek_hierarchical.
Result<ExpertPlacement> tandem_hierarchical(const BalanceProblem& problem);

// One layer of deepseek_global: the expert of each slot.
std::vector<int32_t> deepseek_layer(std::span<const int64_t> tokens, const EpTopology& topology);

// What the hierarchical planners ask for.
Status check_groups(const BalanceProblem& problem);

// Packs whole routing groups into nodes by float32 load, as above: the original expert at each new index, node by node,
// [num_logical]. identity_if_even: as many groups as nodes are left where they are.
std::vector<int32_t> experts_by_node(std::span<const int64_t> tokens, int32_t num_groups, int32_t num_nodes,
                                     bool identity_if_even);

}  // namespace tandem::experts
