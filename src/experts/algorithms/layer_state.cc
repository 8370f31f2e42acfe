#include "experts/algorithms/layer_state.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>

#include "base/check.h"

namespace tandem::experts {
namespace {

constexpr int kTotalBits = 46;
constexpr int kUnitRounds = 4;

bool lower(const Host& a, const Host& b) { return a.base != b.base ? a.base < b.base : a.rank < b.rank; }

// Hosts are few and nearly sorted from one call to the next.
void sort_hosts(std::vector<Host>& hosts) {
  for (size_t i = 1; i < hosts.size(); ++i) {
    const Host host = hosts[i];
    size_t j = i;
    for (; j > 0 && lower(host, hosts[j - 1]); --j) hosts[j] = hosts[j - 1];
    hosts[j] = host;
  }
}

}  // namespace

LayerState::LayerState(std::span<const int64_t> tokens, const EpTopology& topology)
    : topology_(topology),
      load_(tokens.begin(), tokens.end()),
      expert_(size_t(topology.num_slots()), -1),
      part_(size_t(topology.num_slots()), 0),
      rank_load_(size_t(topology.num_ranks), 0),
      slots_of_(tokens.size()),
      count_(size_t(topology.num_ranks) * tokens.size(), 0) {
  const int64_t sum = std::accumulate(tokens.begin(), tokens.end(), int64_t(0));
  const int shift = sum > 0 ? kTotalBits - int(std::bit_width(uint64_t(sum))) : 0;
  for (int64_t& load : load_) load = shift >= 0 ? load << shift : load >> -shift;
  total_ = std::accumulate(load_.begin(), load_.end(), int64_t(0));
  for (int32_t slot = 0; slot < topology.num_slots(); ++slot) rank_of_.push_back(topology.rank_of(slot));
}

int64_t LayerState::largest() const { return *std::max_element(rank_load_.begin(), rank_load_.end()); }

int64_t LayerState::limit_at(int32_t balancedness) const {
  return (total_ * kShareUnit) / (int64_t(balancedness) * topology_.num_ranks);
}

void LayerState::put(int32_t slot, int32_t expert, int64_t part) {
  CHECK(expert_[size_t(slot)] < 0);
  expert_[size_t(slot)] = expert;
  part_[size_t(slot)] = part;
  rank_load_[size_t(rank_of(slot))] += part;
  count_[cell(rank_of(slot), expert)] += 1;
  std::vector<int32_t>& slots = slots_of_[size_t(expert)];
  slots.insert(std::lower_bound(slots.begin(), slots.end(), slot), slot);
}

void LayerState::take(int32_t slot) {
  const int32_t expert = expert_[size_t(slot)];
  CHECK(expert >= 0);
  rank_load_[size_t(rank_of(slot))] -= part_[size_t(slot)];
  count_[cell(rank_of(slot), expert)] -= 1;
  std::vector<int32_t>& slots = slots_of_[size_t(expert)];
  slots.erase(std::lower_bound(slots.begin(), slots.end(), slot));
  expert_[size_t(slot)] = -1;
  part_[size_t(slot)] = 0;
}

void LayerState::set_part(int32_t slot, int64_t part) {
  rank_load_[size_t(rank_of(slot))] += part - part_[size_t(slot)];
  part_[size_t(slot)] = part;
}

void LayerState::fill_from(const ExpertPlacement& placement, int32_t layer) {
  const std::vector<int32_t> shares = shares_of_slots(placement, layer);
  for (int32_t slot = 0; slot < placement.num_slots; ++slot) put(slot, placement.layer(layer)[size_t(slot)], 0);
  for (int32_t expert = 0; expert < num_logical(); ++expert) {
    int64_t left = load(expert);
    for (int32_t slot : slots_of(expert)) {
      const int64_t part = load(expert) * shares[size_t(slot)] / kShareUnit;
      set_part(slot, part);
      left -= part;
    }
    // What rounding left over goes to the slot with the largest share.
    const std::span<const int32_t> slots = slots_of(expert);
    const int32_t largest = *std::max_element(
        slots.begin(), slots.end(), [&](int32_t a, int32_t b) { return shares[size_t(a)] < shares[size_t(b)]; });
    set_part(largest, part(largest) + left);
  }
}

void LayerState::hosts_of(int32_t expert, std::vector<Host>& hosts) const {
  hosts.clear();
  for (int32_t slot : slots_of(expert)) {
    if (hosts.empty() || hosts.back().rank != rank_of(slot))
      hosts.push_back({rank_load(rank_of(slot)), rank_of(slot), slot});
    hosts.back().base -= part(slot);
  }
  sort_hosts(hosts);
}

void LayerState::level(int32_t expert) {
  hosts_of(expert, scratch_);
  for (int32_t slot : slots_of(expert)) set_part(slot, 0);
  int64_t sum = load(expert);
  size_t used = 0;
  while (used < scratch_.size() && (used == 0 || scratch_[used].base * int64_t(used) < sum))
    sum += scratch_[used++].base;
  const int64_t level = sum / int64_t(used);
  int64_t over = sum % int64_t(used);
  for (size_t i = 0; i < used; ++i, --over) set_part(scratch_[i].slot, level + (over > 0 ? 1 : 0) - scratch_[i].base);
}

void LayerState::level_in_units(int32_t expert, int32_t units) {
  hosts_of(expert, scratch_);
  std::vector<int32_t> slots, dealt(scratch_.size(), 0);
  for (const Host& host : scratch_) slots.push_back(host.slot);
  const int64_t unit = load(expert) / units;
  for (int32_t i = 0; i < units; ++i) {
    size_t least = 0;
    for (size_t host = 1; host < scratch_.size(); ++host) {
      if (scratch_[host].base + dealt[host] * unit < scratch_[least].base + dealt[least] * unit) least = host;
    }
    dealt[least] += 1;
  }
  for (int32_t slot : slots_of(expert)) set_part(slot, 0);
  deal(expert, slots, dealt, units);
}

void LayerState::round_to_units(int32_t expert, int32_t units) {
  const std::span<const int32_t> slots = slots_of(expert);
  std::vector<int32_t> dealt, order(slots.size());
  std::vector<int64_t> remainder;
  int32_t left = units;
  for (size_t i = 0; i < slots.size(); ++i) {
    dealt.push_back(int32_t(part(slots[i]) * units / load(expert)));
    remainder.push_back(part(slots[i]) * units % load(expert));
    left -= dealt.back();
    order[i] = int32_t(i);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return remainder[size_t(a)] > remainder[size_t(b)]; });
  for (int32_t i = 0; i < left; ++i) dealt[size_t(order[size_t(i)])] += 1;
  deal(expert, slots, dealt, units);
}

void LayerState::deal(int32_t expert, std::span<const int32_t> slots, std::span<const int32_t> units,
                      int32_t num_units) {
  // Rounding down at the running sum makes the parts add up to the load.
  int64_t upto = 0;
  for (size_t i = 0; i < slots.size(); ++i) {
    const int64_t before = load(expert) * upto / num_units;
    upto += units[i];
    set_part(slots[i], load(expert) * upto / num_units - before);
  }
}

std::vector<int32_t> LayerState::shares() const {
  std::vector<int32_t> result(expert_.size(), 0);
  std::vector<std::pair<int64_t, int32_t>> remainders;  // minus the remainder, slot
  for (int32_t expert = 0; expert < num_logical(); ++expert) {
    const std::span<const int32_t> slots = slots_of(expert);
    const bool equal = load(expert) == 0;
    const int64_t whole = equal ? int64_t(slots.size()) : load(expert);
    int32_t left = kShareUnit;
    remainders.clear();
    for (int32_t slot : slots) {
      const int64_t exact = (equal ? 1 : part(slot)) * kShareUnit;
      result[size_t(slot)] = int32_t(exact / whole);
      left -= result[size_t(slot)];
      remainders.push_back({-(exact % whole), slot});
    }
    std::sort(remainders.begin(), remainders.end());
    for (int32_t i = 0; i < left; ++i) result[size_t(remainders[size_t(i)].second)] += 1;
  }
  return result;
}

int64_t water_level(std::span<const Host> hosts, int64_t amount) {
  int64_t sum = amount;
  size_t used = 0;
  while (used < hosts.size() && (used == 0 || hosts[used].base * int64_t(used) < sum)) sum += hosts[used++].base;
  return (sum + int64_t(used) - 1) / int64_t(used);
}

int64_t water_level_with(std::span<const Host> hosts, int64_t amount, int64_t base) {
  int64_t sum = amount, used = 0;
  bool pending = true;
  for (size_t i = 0; i < hosts.size() || pending;) {
    const bool take_added = pending && (i == hosts.size() || base < hosts[i].base);
    const int64_t next = take_added ? base : hosts[i].base;
    if (used > 0 && next * used >= sum) break;
    sum += next;
    ++used;
    if (take_added)
      pending = false;
    else
      ++i;
  }
  return (sum + used - 1) / used;
}

bool is_level(const LayerState& state) {
  const EpTopology& topology = state.topology();
  const std::span<const int64_t> loads = state.rank_loads();
  const int64_t largest = state.largest();
  const int64_t sliver = state.total() / topology.num_ranks / kShareUnit;
  std::vector<int32_t> reached{int32_t(std::max_element(loads.begin(), loads.end()) - loads.begin())};
  std::vector<bool> seen(loads.size(), false);
  seen[size_t(reached[0])] = true;
  for (size_t i = 0; i < reached.size(); ++i) {
    const int32_t first = reached[i] * topology.slots_per_rank;
    for (int32_t slot = first; slot < first + topology.slots_per_rank; ++slot) {
      if (state.part(slot) == 0) continue;
      for (int32_t other : state.slots_of(state.expert(slot))) {
        const int32_t rank = state.rank_of(other);
        if (seen[size_t(rank)]) continue;
        if (loads[size_t(rank)] < largest - sliver) return false;
        seen[size_t(rank)] = true;
        reached.push_back(rank);
      }
    }
  }
  return true;
}

void level_in_units(LayerState& state, int32_t units) {
  std::vector<int32_t> replicated;
  for (int32_t expert = 0; expert < state.num_logical(); ++expert) {
    if (state.slots_of(expert).size() > 1 && state.load(expert) > 0) replicated.push_back(expert);
  }
  std::stable_sort(replicated.begin(), replicated.end(),
                   [&](int32_t a, int32_t b) { return state.load(a) > state.load(b); });
  int64_t least = std::numeric_limits<int64_t>::max();
  std::vector<int64_t> best(size_t(state.topology().num_slots()));
  for (int round = 0; round < kUnitRounds; ++round) {
    for (int32_t expert : replicated) {
      if (round == 0)
        state.round_to_units(expert, units);
      else
        state.level_in_units(expert, units);
    }
    if (state.largest() >= least) continue;
    least = state.largest();
    for (size_t slot = 0; slot < best.size(); ++slot) best[slot] = state.part(int32_t(slot));
  }
  for (size_t slot = 0; slot < best.size(); ++slot) state.set_part(int32_t(slot), best[slot]);
}

void level_all(LayerState& state, int64_t limit, int32_t max_rounds) {
  std::vector<int32_t> replicated;
  for (int32_t expert = 0; expert < state.num_logical(); ++expert) {
    if (state.slots_of(expert).size() > 1 && state.load(expert) > 0) replicated.push_back(expert);
  }
  for (int32_t round = 0; round < max_rounds; ++round) {
    if (state.largest() <= limit || is_level(state)) return;
    // Alternating the direction lets load travel along a chain of ranks both ways.
    for (int32_t expert : replicated) state.level(expert);
    for (size_t i = replicated.size(); i-- > 0;) state.level(replicated[i]);
  }
}

void level_fully(LayerState& state) { level_all(state, state.limit_at(kShareUnit - kShareUnit / 16384), 64); }

}  // namespace tandem::experts
