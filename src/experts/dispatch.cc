#include "experts/dispatch.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"

namespace tandem::experts {
namespace {

struct DispatchName {
  DispatchAlgorithm algorithm;
  std::string_view name;
};
constexpr DispatchName kDispatchNames[] = {
    {DispatchAlgorithm::kStatic, "static"},
    {DispatchAlgorithm::kDynamic, "dynamic"},
    {DispatchAlgorithm::kFake, "fake"},
    {DispatchAlgorithm::kWeighted, "weighted"},
};

// 0 for a slot's own rank, 1 for its node, 2 for the others.
int32_t distance(const EpTopology& topology, int32_t rank, int32_t slot) {
  if (topology.rank_of(slot) == rank) return 0;
  return topology.node_of_rank(rank) == topology.node_of(slot) ? 1 : 2;
}

// demand[i] of slots[i], taken from ranks that have `supply` each: [num_ranks, slots]. The near go first: a slot's own
// rank, then the ranks of its node, then the others, in each case going round from the slot's rank, slots ascending.
// REQUIRES sum(demand) = supply * num_ranks.
std::vector<int64_t> split_sources(std::span<const int32_t> slots, std::vector<int64_t> demand, int64_t supply,
                                   const EpTopology& topology) {
  std::vector<int64_t> taken(size_t(topology.num_ranks) * slots.size(), 0);
  std::vector<int64_t> left(size_t(topology.num_ranks), supply);
  for (int32_t wanted_distance = 0; wanted_distance <= 2; ++wanted_distance) {
    for (size_t i = 0; i < slots.size(); ++i) {
      const int32_t home = topology.rank_of(slots[i]);
      for (int32_t step = 0; step < topology.num_ranks && demand[i] > 0; ++step) {
        const int32_t rank = (home + step) % topology.num_ranks;
        if (distance(topology, rank, slots[i]) != wanted_distance) continue;
        const int64_t amount = std::min(left[size_t(rank)], demand[i]);
        taken[size_t(rank) * slots.size() + i] += amount;
        left[size_t(rank)] -= amount;
        demand[i] -= amount;
      }
    }
  }
  return taken;
}

// share * num_ranks in whole ranks, by largest remainder, lower slots first among equals.
std::vector<int64_t> quotas_of(std::span<const int32_t> slots, std::span<const int32_t> shares, int32_t num_ranks) {
  std::vector<int64_t> quotas(slots.size()), remainders(slots.size());
  std::vector<size_t> order(slots.size());
  int64_t left = num_ranks;
  for (size_t i = 0; i < slots.size(); ++i) {
    const int64_t exact = int64_t(shares[size_t(slots[i])]) * num_ranks;
    quotas[i] = exact / kShareUnit;
    remainders[i] = exact % kShareUnit;
    left -= quotas[i];
    order[i] = i;
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return remainders[a] > remainders[b]; });
  for (size_t i = 0; i < size_t(left); ++i) quotas[order[i]] += 1;
  return quotas;
}

// What `rank` gives each of an expert's slots, in parts of kShareUnit.
std::vector<int64_t> parts_of_rank(std::span<const int32_t> slots, std::span<const int32_t> shares,
                                   const EpTopology& topology, int32_t rank, DispatchAlgorithm algorithm) {
  if (slots.size() == 1) return {kShareUnit};
  std::vector<int64_t> parts(slots.size());
  for (size_t i = 0; i < slots.size(); ++i) parts[i] = shares[size_t(slots[i])];
  if (algorithm == DispatchAlgorithm::kDynamic || algorithm == DispatchAlgorithm::kFake) return parts;
  const bool whole_ranks = algorithm == DispatchAlgorithm::kStatic;
  std::vector<int64_t> demand = parts;
  if (whole_ranks)
    demand = quotas_of(slots, shares, topology.num_ranks);
  else
    for (int64_t& each : demand) each *= topology.num_ranks;
  const std::vector<int64_t> taken = split_sources(slots, std::move(demand), whole_ranks ? 1 : kShareUnit, topology);
  for (size_t i = 0; i < slots.size(); ++i) {
    parts[i] = taken[size_t(rank) * slots.size() + i] * (whole_ranks ? kShareUnit : 1);
  }
  return parts;
}

}  // namespace

std::string_view to_string(DispatchAlgorithm algorithm) {
  for (const DispatchName& row : kDispatchNames) {
    if (row.algorithm == algorithm) return row.name;
  }
  CHECK(false);
}

Result<DispatchAlgorithm> parse_dispatch_algorithm(std::string_view name) {
  std::string names;
  for (const DispatchName& row : kDispatchNames) {
    if (row.name == name) return row.algorithm;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", row.name);
  }
  return invalid_input(fmt::format("there is no dispatch algorithm '{}'; there are: {}", name, names));
}

LayerDispatch build_dispatch(const ExpertPlacement& placement, const EpTopology& topology, int32_t layer, int32_t rank,
                             DispatchAlgorithm algorithm) {
  CHECK(placement.num_slots == topology.num_slots());
  CHECK(layer >= 0 && layer < placement.num_layers);
  CHECK(rank >= 0 && rank < topology.num_ranks);
  const SlotsOfExperts inverse = slots_of_experts(placement, layer);
  const std::vector<int32_t> shares = shares_of_slots(placement, layer);
  LayerDispatch table;
  table.begin.push_back(0);
  for (int32_t expert = 0; expert < placement.num_logical; ++expert) {
    const std::span<const int32_t> slots = inverse.of(expert);
    const std::vector<int64_t> parts = parts_of_rank(slots, shares, topology, rank, algorithm);
    int64_t upto = 0;
    for (size_t i = 0; i < slots.size(); ++i) {
      if (parts[i] == 0) continue;
      upto += parts[i];
      table.slot.push_back(slots[i]);
      table.upto.push_back(int32_t(upto));
    }
    CHECK(upto == kShareUnit);
    table.begin.push_back(int32_t(table.slot.size()));
  }
  return table;
}

std::vector<int32_t> static_quotas(const ExpertPlacement& placement, const EpTopology& topology, int32_t layer) {
  const SlotsOfExperts inverse = slots_of_experts(placement, layer);
  const std::vector<int32_t> shares = shares_of_slots(placement, layer);
  std::vector<int32_t> result(size_t(placement.num_slots), 0);
  for (int32_t expert = 0; expert < placement.num_logical; ++expert) {
    const std::span<const int32_t> slots = inverse.of(expert);
    const std::vector<int64_t> quotas = quotas_of(slots, shares, topology.num_ranks);
    for (size_t i = 0; i < slots.size(); ++i) result[size_t(slots[i])] = int32_t(quotas[i]);
  }
  return result;
}

Balancedness served_balance(const ExpertLoad& load, const ExpertPlacement& placement, const EpTopology& topology,
                            DispatchAlgorithm algorithm) {
  // But for kStatic the sum over ranks is the share itself.
  if (algorithm != DispatchAlgorithm::kStatic) return balancedness(load, placement, topology);
  CHECK(load.num_layers == placement.num_layers && load.num_logical == placement.num_logical);
  std::vector<double> rank_loads(size_t(placement.num_layers) * size_t(topology.num_ranks));
  for (int32_t layer = 0; layer < placement.num_layers; ++layer) {
    const std::vector<int32_t> quotas = static_quotas(placement, topology, layer);
    for (int32_t slot = 0; slot < placement.num_slots; ++slot) {
      const int64_t tokens = load.layer(layer)[size_t(placement.layer(layer)[size_t(slot)])];
      rank_loads[size_t(layer) * size_t(topology.num_ranks) + size_t(topology.rank_of(slot))] +=
          double(tokens) * quotas[size_t(slot)] / topology.num_ranks;
    }
  }
  return balancedness_of_ranks(rank_loads, topology.num_ranks);
}

}  // namespace tandem::experts
