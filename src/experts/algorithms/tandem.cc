#include <algorithm>
#include <numeric>
#include <queue>
#include <tuple>

#include "base/check.h"
#include "experts/algorithms/local_search.h"
#include "experts/algorithms/rows.h"

namespace tandem::experts {
namespace {

constexpr int32_t kGoodEnough = kShareUnit - kShareUnit / 2048;  // balancedness at which the search stops

// Slots per expert, their sum being num_slots: the next goes to the largest load per replica, then to the fewer
// replicas, then to the lower expert. Beyond one per rank only when every expert has that many.
std::vector<int32_t> count_replicas(const LayerState& state) {
  const int32_t num_ranks = state.topology().num_ranks;
  std::vector<int32_t> count(size_t(state.num_logical()), 1);
  using Score = std::tuple<bool, int64_t, int32_t, int32_t>;  // below the cap, load per replica, -replicas, -expert
  std::priority_queue<Score> scores;
  const auto score = [&](int32_t expert) {
    const int32_t replicas = count[size_t(expert)];
    return Score{replicas < num_ranks, state.load(expert) / replicas, -replicas, -expert};
  };
  for (int32_t expert = 0; expert < state.num_logical(); ++expert) scores.push(score(expert));
  for (int32_t i = state.num_logical(); i < state.topology().num_slots(); ++i) {
    const int32_t expert = -std::get<3>(scores.top());
    scores.pop();
    count[size_t(expert)] += 1;
    scores.push(score(expert));
  }
  return count;
}

struct Item {
  int64_t part;
  int32_t expert;
};

class Packer {
 public:
  explicit Packer(LayerState& state) : state_(state), used_(size_t(state.topology().num_ranks), 0) {
    for (int32_t rank = 0; rank < state.topology().num_ranks; ++rank) open_.push({0, rank});
  }

  // Heaviest first, into the lightest rank with room that does not hold the expert yet.
  void pack(std::vector<Item> items) {
    std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.part > b.part; });
    for (const Item& item : items) {
      const auto [rank, is_new_there] = take_lightest(item.expert);
      if (is_new_there || !make_way(rank, item)) state_.put(next_slot(rank), item.expert, item.part);
      if (used_[size_t(rank)] < state_.topology().slots_per_rank) open_.push({state_.rank_load(rank), rank});
    }
  }

 private:
  struct Choice {
    int32_t rank;
    bool is_new_there;
  };

  int32_t next_slot(int32_t rank) { return rank * state_.topology().slots_per_rank + used_[size_t(rank)]++; }

  // Takes the rank out of open_: the lightest without the expert, else the lightest.
  Choice take_lightest(int32_t expert) {
    std::vector<Rank> passed;
    while (!open_.empty() && state_.holds(open_.top().second, expert)) {
      passed.push_back(open_.top());
      open_.pop();
    }
    const bool found = !open_.empty();
    const int32_t rank = found ? open_.top().second : passed.front().second;
    if (found) open_.pop();
    for (const Rank& each : passed) {
      if (each.second != rank) open_.push(each);
    }
    return {rank, found};
  }

  // Every rank with room holds the expert: a full rank that does not gives an item to `rank` and takes this one. False
  // where no exchange helps, which is only where a second replica on a rank cannot be avoided.
  bool make_way(int32_t rank, const Item& item) {
    const int32_t per_rank = state_.topology().slots_per_rank;
    for (int32_t slot = 0; slot < state_.topology().num_slots(); ++slot) {
      const int32_t full = state_.rank_of(slot);
      if (used_[size_t(full)] < per_rank || state_.holds(full, item.expert)) continue;
      const int32_t moved = state_.expert(slot);
      if (state_.holds(rank, moved)) continue;
      const int64_t part = state_.part(slot);
      state_.take(slot);
      state_.put(slot, item.expert, item.part);
      state_.put(next_slot(rank), moved, part);
      return true;
    }
    return false;
  }

  using Rank = std::pair<int64_t, int32_t>;  // load, rank: the top is the lightest, the lower rank among equals

  LayerState& state_;
  std::vector<int32_t> used_;                                              // slots, per rank
  std::priority_queue<Rank, std::vector<Rank>, std::greater<Rank>> open_;  // ranks with room
};

// Moves replicas and shares from wherever they are.
void improve(LayerState& state) {
  const int64_t limit = state.limit_at(kGoodEnough);
  search(state, {.limit = limit, .max_steps = 64, .original = {}});
  level_fully(state);
  search(state, {.limit = limit, .max_steps = 24, .level_each_step = true, .original = {}});
  level_fully(state);
}

int64_t part_of(int64_t load, int32_t replicas, int32_t i) { return load / replicas + (i < load % replicas ? 1 : 0); }

void pack_replicas(LayerState& state) {
  std::vector<Item> items;
  const std::vector<int32_t> count = count_replicas(state);
  for (int32_t expert = 0; expert < state.num_logical(); ++expert) {
    const int32_t replicas = count[size_t(expert)];
    for (int32_t i = 0; i < replicas; ++i) items.push_back({part_of(state.load(expert), replicas, i), expert});
  }
  Packer(state).pack(std::move(items));
}

// A plan of the published planner with its loads of the ranks. Where it puts two replicas of an expert on a rank, the
// first serves for both and the other slot gets a replica, so far without load, of the most loaded expert that the rank
// does not hold. REQUIRES at least as many experts as slots on a rank.
void put_apart(LayerState& state, std::span<const int32_t> experts) {
  std::vector<int32_t> count(size_t(state.num_logical()), 0), next = count;
  for (int32_t expert : experts) count[size_t(expert)] += 1;
  std::vector<int32_t> doubled;
  for (int32_t slot = 0; slot < int32_t(experts.size()); ++slot) {
    const int32_t expert = experts[size_t(slot)], rank = state.rank_of(slot);
    const int64_t part = part_of(state.load(expert), count[size_t(expert)], next[size_t(expert)]++);
    if (!state.holds(rank, expert)) {
      state.put(slot, expert, part);
      continue;
    }
    doubled.push_back(slot);
    for (int32_t other : state.slots_of(expert)) {
      if (state.rank_of(other) == rank) state.set_part(other, state.part(other) + part);
    }
  }
  for (int32_t slot : doubled) {
    int32_t best = -1;
    for (int32_t expert = 0; expert < state.num_logical(); ++expert) {
      if (state.holds(state.rank_of(slot), expert)) continue;
      if (best < 0 || state.load(expert) > state.load(best)) best = expert;
    }
    CHECK(best >= 0);
    state.put(slot, best, 0);
  }
}

LayerState plan_fresh(std::span<const int64_t> tokens, const EpTopology& topology) {
  LayerState state(tokens, topology);
  pack_replicas(state);
  if (state.total() == 0) return state;
  improve(state);
  // With coarse loads a search may end above the published plan. Then it starts from there.
  if (topology.slots_per_rank > state.num_logical()) return state;
  LayerState published(tokens, topology);
  put_apart(published, deepseek_layer(tokens, topology));
  if (published.largest() >= state.largest()) return state;
  improve(published);
  return published;
}

// Experts of one node (or all of them) in one layer: their plan into the slots and shares of that node.
void plan_part(std::span<const int64_t> tokens, std::span<const int32_t> experts, const EpTopology& topology,
               std::span<int32_t> slots, std::span<int32_t> shares) {
  std::vector<int64_t> part_tokens;
  for (int32_t expert : experts) part_tokens.push_back(tokens[size_t(expert)]);
  const LayerState state = plan_fresh(part_tokens, topology);
  const std::vector<int32_t> planned = state.shares();
  for (size_t slot = 0; slot < slots.size(); ++slot) {
    slots[slot] = experts[size_t(state.expert(int32_t(slot)))];
    shares[slot] = planned[slot];
  }
}

ExpertPlacement plan_layers(const BalanceProblem& problem, int32_t num_groups, int32_t num_parts) {
  const ExpertLoad load = sum_of(problem.steps);
  ExpertPlacement placement{load.num_layers, load.num_logical, problem.topology.num_slots(), {}, {}};
  placement.logical_of_slot.resize(size_t(placement.num_layers) * size_t(placement.num_slots));
  placement.share.resize(placement.logical_of_slot.size());
  const EpTopology part{problem.topology.num_nodes / num_parts, problem.topology.num_ranks / num_parts,
                        problem.topology.slots_per_rank};
  const size_t num_slots = size_t(part.num_slots()), num_experts = size_t(load.num_logical / num_parts);
  for (int32_t layer = 0; layer < load.num_layers; ++layer) {
    const std::vector<int32_t> original = experts_by_node(load.layer(layer), num_groups, num_parts, true);
    for (size_t i = 0; i < size_t(num_parts); ++i) {
      const size_t first = size_t(layer) * size_t(placement.num_slots) + i * num_slots;
      plan_part(load.layer(layer), std::span(original).subspan(i * num_experts, num_experts), part,
                std::span(placement.logical_of_slot).subspan(first, num_slots),
                std::span(placement.share).subspan(first, num_slots));
    }
  }
  return placement;
}

}  // namespace

Result<ExpertPlacement> tandem_global(const BalanceProblem& problem) { return plan_layers(problem, 1, 1); }

Result<ExpertPlacement> tandem_hierarchical(const BalanceProblem& problem) {
  RETURN_IF_ERROR(check_groups(problem));
  return plan_layers(problem, problem.num_groups, problem.topology.num_nodes);
}

}  // namespace tandem::experts
