#include "experts/repair.h"

#include <algorithm>
#include <optional>

#include "base/check.h"
#include "experts/algorithms/assignment.h"
#include "experts/algorithms/local_search.h"

namespace tandem::experts {
namespace {

void check_sizes(const ExpertLoad& load, const ExpertPlacement& placement, const EpTopology& topology) {
  CHECK(load.num_layers == placement.num_layers);
  CHECK(load.num_logical == placement.num_logical);
  CHECK(placement.num_slots == topology.num_slots());
}

void write_layer(const LayerState& state, ExpertPlacement& placement, int32_t layer) {
  const size_t first = size_t(layer) * size_t(placement.num_slots);
  for (int32_t slot = 0; slot < placement.num_slots; ++slot) {
    placement.logical_of_slot[first + size_t(slot)] = state.expert(slot);
  }
  const std::vector<int32_t> shares = state.shares();
  std::copy(shares.begin(), shares.end(), placement.share.begin() + ptrdiff_t(first));
}

// Every layer with load gets `change`; the others keep experts and shares.
template <class Change>
ExpertPlacement change_layers(const ExpertLoad& load, const ExpertPlacement& current, const EpTopology& topology,
                              Change change) {
  check_sizes(load, current, topology);
  ExpertPlacement result = current;
  result.share.clear();
  for (int32_t layer = 0; layer < current.num_layers; ++layer) {
    const std::vector<int32_t> shares = shares_of_slots(current, layer);
    result.share.insert(result.share.end(), shares.begin(), shares.end());
    LayerState state(load.layer(layer), topology);
    if (state.total() == 0) continue;
    state.fill_from(current, layer);
    change(state, layer);
    write_layer(state, result, layer);
  }
  return result;
}

// Puts the experts of one rank into its slots: those it held before keep their slots, the rest fill the gaps in order.
void keep_slots(std::span<const int32_t> before, std::span<int32_t> experts, std::span<int32_t> shares) {
  std::vector<std::optional<size_t>> source(before.size());
  std::vector<bool> used(before.size(), false);
  for (size_t slot = 0; slot < before.size(); ++slot) {
    for (size_t i = 0; i < experts.size() && !source[slot]; ++i) {
      if (used[i] || experts[i] != before[slot]) continue;
      source[slot] = i;
      used[i] = true;
    }
  }
  size_t next = 0;
  for (std::optional<size_t>& from : source) {
    if (from) continue;
    while (used[next]) ++next;
    used[next] = true;
    from = next;
  }
  const std::vector<int32_t> old_experts(experts.begin(), experts.end()), old_shares(shares.begin(), shares.end());
  for (size_t slot = 0; slot < before.size(); ++slot) {
    experts[slot] = old_experts[*source[slot]];
    shares[slot] = old_shares[*source[slot]];
  }
}

// [old rank, new rank] how many experts they have in common, counting repetitions as often as both have them.
std::vector<int64_t> overlaps(std::span<const int32_t> before, std::span<const int32_t> after,
                              const EpTopology& topology, int32_t num_logical) {
  const size_t num_ranks = size_t(topology.num_ranks), per_rank = size_t(topology.slots_per_rank);
  std::vector<int64_t> result(num_ranks * num_ranks, 0);
  std::vector<int32_t> count(size_t(num_logical), 0);
  for (size_t old_rank = 0; old_rank < num_ranks; ++old_rank) {
    for (size_t new_rank = 0; new_rank < num_ranks; ++new_rank) {
      for (int32_t expert : before.subspan(old_rank * per_rank, per_rank)) count[size_t(expert)] += 1;
      for (int32_t expert : after.subspan(new_rank * per_rank, per_rank)) {
        result[old_rank * num_ranks + new_rank] += count[size_t(expert)]-- > 0 ? 1 : 0;
      }
      for (int32_t expert : before.subspan(old_rank * per_rank, per_rank)) count[size_t(expert)] = 0;
      for (int32_t expert : after.subspan(new_rank * per_rank, per_rank)) count[size_t(expert)] = 0;
    }
  }
  return result;
}

// For each old rank the new rank whose content it takes.
std::vector<int32_t> assign_ranks(std::span<const int64_t> overlap, const EpTopology& topology, RelabelScope scope) {
  const int32_t num_ranks = topology.num_ranks;
  const int32_t block = scope == RelabelScope::kWithinNode ? topology.ranks_per_node() : num_ranks;
  std::vector<int32_t> result;
  for (int32_t first = 0; first < num_ranks; first += block) {
    std::vector<int64_t> gain;
    for (int32_t row = first; row < first + block; ++row) {
      const auto begin = overlap.begin() + ptrdiff_t(row) * num_ranks + first;
      gain.insert(gain.end(), begin, begin + block);
    }
    for (int32_t column : best_assignment(gain, block)) result.push_back(first + column);
  }
  return result;
}

}  // namespace

ExpertPlacement reshare(const ExpertLoad& load, const ExpertPlacement& current, const EpTopology& topology,
                        ShareGrain grain) {
  return change_layers(load, current, topology, [&](LayerState& state, int32_t) {
    level_fully(state);
    if (grain == ShareGrain::kWholeRanks) level_in_units(state, topology.num_ranks);
  });
}

ExpertPlacement repair(const ExpertLoad& load, const ExpertPlacement& current, const EpTopology& topology,
                       const RepairLimits& limits) {
  CHECK(limits.target > 0 && limits.target <= 1);
  const int32_t target = std::max(1, int32_t(limits.target * kShareUnit));
  return change_layers(load, current, topology, [&](LayerState& state, int32_t layer) {
    level_fully(state);
    const std::span<const int32_t> before = current.layer(layer);
    search(state, {.limit = state.limit_at(target),
                   .max_steps = topology.num_slots(),
                   .max_changed = limits.max_changed_per_layer,
                   .level_each_step = true,
                   .original = {before.begin(), before.end()}});
    level_fully(state);
  });
}

ExpertPlacement relabel(const ExpertPlacement& plan, const ExpertPlacement& current, const EpTopology& topology,
                        RelabelScope scope) {
  CHECK(plan.num_layers == current.num_layers && plan.num_logical == current.num_logical);
  CHECK(plan.num_slots == topology.num_slots() && current.num_slots == topology.num_slots());
  ExpertPlacement result = plan;
  const size_t per_rank = size_t(topology.slots_per_rank);
  for (int32_t layer = 0; layer < plan.num_layers; ++layer) {
    const std::span<const int32_t> before = current.layer(layer), after = plan.layer(layer);
    std::vector<int32_t> shares = shares_of_slots(plan, layer), new_shares = shares;
    const std::vector<int32_t> content =
        assign_ranks(overlaps(before, after, topology, plan.num_logical), topology, scope);
    const std::span<int32_t> experts(result.logical_of_slot.data() + size_t(layer) * before.size(), before.size());
    for (size_t rank = 0; rank < content.size(); ++rank) {
      const size_t from = size_t(content[rank]) * per_rank, to = rank * per_rank;
      std::copy_n(after.begin() + ptrdiff_t(from), per_rank, experts.begin() + ptrdiff_t(to));
      std::copy_n(shares.begin() + ptrdiff_t(from), per_rank, new_shares.begin() + ptrdiff_t(to));
      keep_slots(before.subspan(to, per_rank), experts.subspan(to, per_rank),
                 std::span(new_shares).subspan(to, per_rank));
    }
    if (plan.share.empty()) continue;
    std::copy(new_shares.begin(), new_shares.end(), result.share.begin() + ptrdiff_t(size_t(layer) * before.size()));
  }
  return result;
}

int64_t changed_slots(const ExpertPlacement& from, const ExpertPlacement& to) {
  CHECK(from.logical_of_slot.size() == to.logical_of_slot.size());
  int64_t changed = 0;
  for (size_t i = 0; i < from.logical_of_slot.size(); ++i) changed += from.logical_of_slot[i] != to.logical_of_slot[i];
  return changed;
}

}  // namespace tandem::experts
