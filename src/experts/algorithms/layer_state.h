// One layer while it is being planned: which expert each slot holds and which part of its load the slot serves. All
// integers, so that a plan is the same on every machine. Owner: the planner that made it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "experts/placement.h"

namespace tandem::experts {

// A rank that may serve an expert: `base` is what it serves already, `slot` where the expert lies there (-1: would be
// new there).
struct Host {
  int64_t base = 0;
  int32_t rank = 0;
  int32_t slot = 0;
};

class LayerState {
 public:
  // tokens: [num_logical]. Loads are scaled by a power of two so that their sum is near 2^46: parts stay exact to about
  // one in 2^30 of a rank's load and no product here overflows.
  LayerState(std::span<const int64_t> tokens, const EpTopology& topology);

  const EpTopology& topology() const { return topology_; }
  int32_t num_logical() const { return int32_t(load_.size()); }
  int64_t load(int32_t expert) const { return load_[size_t(expert)]; }
  int64_t total() const { return total_; }
  int32_t expert(int32_t slot) const { return expert_[size_t(slot)]; }  // -1: empty
  int64_t part(int32_t slot) const { return part_[size_t(slot)]; }
  int32_t rank_of(int32_t slot) const { return rank_of_[size_t(slot)]; }
  int64_t rank_load(int32_t rank) const { return rank_load_[size_t(rank)]; }
  std::span<const int64_t> rank_loads() const { return rank_load_; }
  std::span<const int32_t> slots_of(int32_t expert) const { return slots_of_[size_t(expert)]; }
  bool holds(int32_t rank, int32_t expert) const { return count_[cell(rank, expert)] > 0; }
  // Of the slots that hold an expert, how many are on this rank.
  int32_t count(int32_t rank, int32_t expert) const { return count_[cell(rank, expert)]; }

  int64_t largest() const;
  // The largest load that a rank may have at this balancedness, given in parts of kShareUnit.
  int64_t limit_at(int32_t balancedness) const;

  // Puts an expert with a part of its load into a slot; empties one.
  void put(int32_t slot, int32_t expert, int64_t part);
  void take(int32_t slot);
  void set_part(int32_t slot, int64_t part);
  // Takes experts and shares from a placement. REQUIRES empty slots.
  void fill_from(const ExpertPlacement& placement, int32_t layer);

  // One Host per rank that holds the expert, base without the expert's own part, sorted by base, lower rank first.
  void hosts_of(int32_t expert, std::vector<Host>& hosts) const;
  // Splits the load of an expert over its hosts so that the largest of them is least: the water level rises over the
  // lowest bases. A second slot on a rank gets nothing.
  void level(int32_t expert);
  // The same in `units` equal parts, dealt one by one to the host with least.
  void level_in_units(int32_t expert, int32_t units);
  // The parts as they are, rounded to whole units by largest remainder.
  void round_to_units(int32_t expert, int32_t units);

  // Shares of the slots, [num_slots], in parts of kShareUnit, by largest remainder; equal for experts without load.
  std::vector<int32_t> shares() const;

 private:
  // The i-th slot gets units[i] of num_units equal parts.
  void deal(int32_t expert, std::span<const int32_t> slots, std::span<const int32_t> units, int32_t num_units);
  size_t cell(int32_t rank, int32_t expert) const { return size_t(rank) * load_.size() + size_t(expert); }

  EpTopology topology_;
  std::vector<int64_t> load_;
  int64_t total_ = 0;
  std::vector<int32_t> expert_;
  std::vector<int64_t> part_;
  std::vector<int32_t> rank_of_;
  std::vector<int64_t> rank_load_;
  std::vector<std::vector<int32_t>> slots_of_;  // ascending
  std::vector<int16_t> count_;                  // [num_ranks, num_logical]
  std::vector<Host> scratch_;
};

// The level to which `amount` rises over hosts sorted by base, rounded up: the largest load of those that get some.
int64_t water_level(std::span<const Host> hosts, int64_t amount);
// The same with one more host of this base.
int64_t water_level_with(std::span<const Host> hosts, int64_t amount, int64_t base);

// Levels the replicated experts in turn, at most max_rounds times over all; stops once no rank is over `limit` or
// nothing can be gained. No rank's load ends over the largest of before. This is block descent on the sum of squares of
// the rank loads, whose minimum also has the least largest load for this placement.
void level_all(LayerState& state, int64_t limit, int32_t max_rounds);

// As level as this placement allows, to 1/16384 of balancedness.
void level_fully(LayerState& state);

// Splits every replicated expert into `units` equal parts, which its hosts get whole. The most loaded experts first;
// each part goes to the host that it leaves least loaded. A few rounds, the best of which stays.
void level_in_units(LayerState& state, int32_t units);

// True where no split can lower the largest load (but for a sliver of the mean): of the load of the busiest rank
// nothing can flow, directly or over other ranks, to a rank that is less loaded.
bool is_level(const LayerState& state);

}  // namespace tandem::experts
