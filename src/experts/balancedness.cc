#include "experts/balancedness.h"

#include <algorithm>

#include "base/check.h"

namespace tandem::experts {

Balancedness balancedness_of_ranks(std::span<const double> rank_loads, int32_t num_ranks) {
  CHECK(num_ranks > 0 && rank_loads.size() % size_t(num_ranks) == 0);
  Balancedness result;
  double sum_of_means = 0, sum_of_maxima = 0;
  for (size_t first = 0; first < rank_loads.size(); first += size_t(num_ranks)) {
    double sum = 0, maximum = 0;
    for (double load : rank_loads.subspan(first, size_t(num_ranks))) {
      sum += load;
      maximum = std::max(maximum, load);
    }
    const double mean = sum / num_ranks;
    result.layer.push_back(maximum > 0 ? mean / maximum : 1);
    result.worst = std::min(result.worst, result.layer.back());
    sum_of_means += mean;
    sum_of_maxima += maximum;
  }
  if (sum_of_maxima > 0) result.mean = sum_of_means / sum_of_maxima;
  return result;
}

std::vector<double> rank_loads(const ExpertLoad& load, const ExpertPlacement& placement, const EpTopology& topology) {
  CHECK(load.num_layers == placement.num_layers && load.num_logical == placement.num_logical);
  CHECK(placement.num_slots == topology.num_slots());
  std::vector<double> loads(size_t(placement.num_layers) * size_t(topology.num_ranks));
  for (int32_t layer = 0; layer < placement.num_layers; ++layer) {
    const std::span<const int32_t> experts = placement.layer(layer);
    const std::span<const int64_t> tokens = load.layer(layer);
    const std::vector<int32_t> shares = shares_of_slots(placement, layer);
    double* ranks = loads.data() + size_t(layer) * size_t(topology.num_ranks);
    for (int32_t slot = 0; slot < placement.num_slots; ++slot) {
      ranks[topology.rank_of(slot)] +=
          double(tokens[size_t(experts[size_t(slot)])]) * double(shares[size_t(slot)]) / kShareUnit;
    }
  }
  return loads;
}

Balancedness balancedness(const ExpertLoad& load, const ExpertPlacement& placement, const EpTopology& topology) {
  return balancedness_of_ranks(rank_loads(load, placement, topology), topology.num_ranks);
}

}  // namespace tandem::experts
