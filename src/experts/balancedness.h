// How evenly the ranks are loaded: mean load over largest load, 1 when all ranks get the same. Any thread; values.
// Source: the expert-parallel balancedness that SGLang logs, without its constant and without layers that saw no token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "experts/placement.h"

namespace tandem::experts {

struct Balancedness {
  std::vector<double> layer;  // [num_layers]; 1 for a layer without load
  // The sum over layers of the mean load over the sum of the largest: layers weigh by what they cost. 1 without load.
  double mean = 1;
  double worst = 1;  // of the layers with load
};

// From loads per rank, [num_layers, num_ranks], in any unit.
Balancedness balancedness_of_ranks(std::span<const double> rank_loads, int32_t num_ranks);

// Each slot gets its share of its expert's load. REQUIRES a valid placement and a load of the same layers and experts.
// The first: [num_layers, num_ranks] (token, choice) pairs that each rank would get.
std::vector<double> rank_loads(const ExpertLoad& load, const ExpertPlacement& placement, const EpTopology& topology);
Balancedness balancedness(const ExpertLoad& load, const ExpertPlacement& placement, const EpTopology& topology);

}  // namespace tandem::experts
