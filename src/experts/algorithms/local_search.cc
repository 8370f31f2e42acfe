#include "experts/algorithms/local_search.h"

#include <algorithm>

namespace tandem::experts {
namespace {

constexpr int32_t kBusyRanks = 4;

enum class StepKind { kNone, kSwap, kReplica };

struct Step {
  StepKind kind = StepKind::kNone;
  int32_t from = 0, to = 0;  // slot on the busy rank, slot elsewhere
  int64_t peak = 0;          // largest load of the ranks touched, afterwards
};

class Search {
 public:
  Search(LayerState& state, const SearchLimits& limits) : state_(state), limits_(limits) {
    if (limits_.max_changed < 0) return;
    for (int32_t slot = 0; slot < state_.topology().num_slots(); ++slot)
      changed_ += is_changed(slot, state_.expert(slot));
  }

  void run() {
    for (int32_t i = 0; i < limits_.max_steps; ++i) {
      const int64_t largest = state_.largest();
      if (largest <= limits_.limit) return;
      const Step step = best_step(largest);
      if (step.kind == StepKind::kNone) return;
      apply(step);
      if (limits_.level_each_step) level_all(state_, limits_.limit, 8);
    }
  }

 private:
  // Of the busiest rank; where splits are levelled, ranks as busy as that one exchange load with it, so the first few
  // of them are asked in turn.
  Step best_step(int64_t largest) {
    const int64_t mean = state_.total() / state_.topology().num_ranks;
    int32_t left = limits_.level_each_step ? kBusyRanks : 1;
    for (int32_t rank = 0; rank < state_.topology().num_ranks && left > 0; ++rank) {
      if (state_.rank_load(rank) < largest - (limits_.level_each_step ? mean / 4096 : 0)) continue;
      const Step step = best_step_of(rank, mean);
      if (step.kind != StepKind::kNone) return step;
      --left;
    }
    return {};
  }

  bool is_changed(int32_t slot, int32_t expert) const { return limits_.original[size_t(slot)] != expert; }

  bool within_budget(int32_t slot, int32_t expert, int32_t other_slot, int32_t other_expert) const {
    if (limits_.max_changed < 0) return true;
    int32_t changed = changed_ - is_changed(slot, state_.expert(slot)) + is_changed(slot, expert);
    if (other_slot >= 0) {
      changed += is_changed(other_slot, other_expert) - is_changed(other_slot, state_.expert(other_slot));
    }
    return changed <= limits_.max_changed;
  }

  Step best_step_of(int32_t busy, int64_t mean) {
    Step best;
    // A step must take off at least a small part of what the rank has too much, or the search creeps.
    const int64_t load = state_.rank_load(busy);
    best.peak = load - (load - mean) / 64;
    find_swap(busy, best);
    if (limits_.max_changed < 0) {
      // A swap that settles both ranks need not be compared with anything.
      if (best.peak > limits_.limit) find_replica(busy, best);
      return best;
    }
    // A swap changes two slots: a replica move is as good if it takes off half as much.
    Step replica;
    replica.peak = load - (load - best.peak) / 2;
    find_replica(busy, replica);
    return replica.kind != StepKind::kNone ? replica : best;
  }

  void find_swap(int32_t busy, Step& best) const {
    const int32_t per_rank = state_.topology().slots_per_rank;
    const int64_t busy_load = state_.rank_load(busy);
    for (int32_t from = busy * per_rank; from < (busy + 1) * per_rank; ++from) {
      for (int32_t rank = 0; rank < state_.topology().num_ranks; ++rank) {
        const int64_t other_load = state_.rank_load(rank);
        // No swap of two ranks does better than their mean.
        if (rank == busy || (busy_load + other_load) / 2 >= best.peak) continue;
        if (state_.holds(rank, state_.expert(from))) continue;
        for (int32_t to = rank * per_rank; to < (rank + 1) * per_rank; ++to) {
          const int64_t less = state_.part(from) - state_.part(to);
          const int64_t peak = std::max(busy_load - less, other_load + less);
          if (peak >= best.peak || state_.holds(busy, state_.expert(to))) continue;
          if (!within_budget(from, state_.expert(to), to, state_.expert(from))) continue;
          best = {StepKind::kSwap, from, to, peak};
        }
      }
    }
  }

  void find_replica(int32_t busy, Step& best) {
    const int32_t per_rank = state_.topology().slots_per_rank;
    hosts_.resize(size_t(per_rank));
    for (int32_t i = 0; i < per_rank; ++i) {
      hosts_[size_t(i)].clear();
      const int32_t from = busy * per_rank + i;
      if (state_.part(from) > 0) state_.hosts_of(state_.expert(from), hosts_[size_t(i)]);
    }
    for (int32_t to = 0; to < state_.topology().num_slots(); ++to) {
      const int32_t rank = state_.rank_of(to), victim = state_.expert(to);
      if (rank == busy || state_.slots_of(victim).size() < 2) continue;
      if (state_.part(to) > 0 && state_.count(rank, victim) > 1) continue;
      const int64_t base = state_.rank_load(rank) - state_.part(to);
      if (base >= best.peak) continue;
      const int64_t victim_level = level_without(victim, to);
      if (victim_level >= best.peak) continue;
      for (int32_t i = 0; i < per_rank; ++i) {
        const std::span<const Host> hosts = hosts_[size_t(i)];
        const int32_t from = busy * per_rank + i, expert = state_.expert(from);
        if (hosts.empty() || expert == victim || state_.holds(rank, expert)) continue;
        const int64_t peak =
            std::max({victim_level, water_level_with(hosts, state_.load(expert), base), hosts.back().base});
        if (peak >= best.peak || share_a_host(expert, victim) || !within_budget(to, expert, -1, 0)) continue;
        best = {StepKind::kReplica, from, to, peak};
      }
    }
  }

  // Then the levels below would not be independent.
  bool share_a_host(int32_t expert, int32_t other) const {
    for (int32_t slot : state_.slots_of(expert)) {
      if (state_.holds(state_.rank_of(slot), other)) return true;
    }
    return false;
  }

  // The largest load of the ranks that serve the expert once `slot` does not; 0 if no load moves.
  int64_t level_without(int32_t expert, int32_t slot) {
    // A second slot on the same rank serves nothing once the expert has been levelled.
    if (state_.part(slot) == 0) return 0;
    state_.hosts_of(expert, victim_hosts_);
    const int32_t rank = state_.rank_of(slot);
    std::erase_if(victim_hosts_, [&](const Host& host) { return host.rank == rank; });
    return std::max(water_level(victim_hosts_, state_.load(expert)), victim_hosts_.back().base);
  }

  void put_changed(int32_t slot, int32_t expert, int64_t part) {
    if (limits_.max_changed >= 0) changed_ += is_changed(slot, expert);
    state_.put(slot, expert, part);
  }

  void take_changed(int32_t slot) {
    if (limits_.max_changed >= 0) changed_ -= is_changed(slot, state_.expert(slot));
    state_.take(slot);
  }

  void apply(const Step& step) {
    const int32_t expert = state_.expert(step.from), other = state_.expert(step.to);
    const int64_t part = state_.part(step.from), other_part = state_.part(step.to);
    take_changed(step.to);
    if (step.kind == StepKind::kReplica) {
      put_changed(step.to, expert, 0);
      state_.level(other);
      state_.level(expert);
      return;
    }
    take_changed(step.from);
    put_changed(step.to, expert, part);
    put_changed(step.from, other, other_part);
  }

  LayerState& state_;
  const SearchLimits& limits_;
  int32_t changed_ = 0;
  std::vector<std::vector<Host>> hosts_;  // of the experts on the busy rank, by slot
  std::vector<Host> victim_hosts_;
};

}  // namespace

void search(LayerState& state, const SearchLimits& limits) { Search(state, limits).run(); }

}  // namespace tandem::experts
