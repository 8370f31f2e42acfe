// From a logical expert to a slot: what a rank looks up for each (token, choice) after the gate. The placement is the
// same on all ranks; the dispatch is derived from it, per rank, and differs from rank to rank where locality matters.
// Weights are loaded and moved by the placement alone. Any thread; values.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "experts/balancedness.h"
#include "experts/placement.h"

namespace tandem::experts {

enum class DispatchAlgorithm : uint8_t {
  // One slot per expert and rank, near ones first. A replica serves its share of the ranks, rounded to whole ranks by
  // largest remainder, so the shares hold as nearly as whole ranks can.
  kStatic,
  // All replicas, drawn by their shares, wherever they are.
  kDynamic,
  // As kDynamic; the engine also replaces the gate's scores by noise (a benchmark aid).
  kFake,
  // Near replicas first, as kStatic, but a rank may split an expert over several replicas: summed over the ranks each
  // replica gets exactly its share.
  kWeighted,
};

// "static", "dynamic", "fake", "weighted".
std::string_view to_string(DispatchAlgorithm algorithm);
// kInvalidInput with the names that exist.
Result<DispatchAlgorithm> parse_dispatch_algorithm(std::string_view name);

// One layer's table of one rank. Expert e goes to the slots slot[begin[e]] up to slot[begin[e + 1] - 1].
struct LayerDispatch {
  std::vector<int32_t> begin;  // [num_logical + 1]
  std::vector<int32_t> slot;   // global numbers; none without a share
  std::vector<int32_t> upto;   // cumulative share, strictly rising; kShareUnit at the last slot of each expert

  // The slot whose range holds the draw. REQUIRES an expert in range and draw < kShareUnit.
  int32_t choose(int32_t expert, uint32_t draw) const {
    int32_t i = begin[size_t(expert)];
    while (int32_t(draw) >= upto[size_t(i)]) ++i;
    return slot[size_t(i)];
  }
  bool operator==(const LayerDispatch&) const = default;
};

// Evenly spread over [0, kShareUnit). A function of its arguments alone, so a replay chooses the same slots.
inline uint32_t draw_of(uint64_t step_seed, uint64_t token, uint32_t choice) {
  // The finalizer of SplitMix64 (Steele, Lea, Flood 2014), once per argument.
  uint64_t x = step_seed;
  for (uint64_t part : {token, uint64_t(choice)}) {
    x += 0x9E3779B97F4A7C15 * (part + 1);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    x ^= x >> 31;
  }
  return uint32_t(x >> 48);
}

// The table of `rank`. REQUIRES a valid placement of this topology, layer and rank in range.
LayerDispatch build_dispatch(const ExpertPlacement& placement, const EpTopology& topology, int32_t layer, int32_t rank,
                             DispatchAlgorithm algorithm);

// How many source ranks kStatic gives each slot of a layer, [num_slots]: the sum over an expert's slots is num_ranks.
std::vector<int32_t> static_quotas(const ExpertPlacement& placement, const EpTopology& topology, int32_t layer);

// Balancedness after dispatch when every rank sends the same traffic.
Balancedness served_balance(const ExpertLoad& load, const ExpertPlacement& placement, const EpTopology& topology,
                            DispatchAlgorithm algorithm);

}  // namespace tandem::experts
