#include "router/rank_loads.h"

#include <algorithm>

#include "base/check.h"

namespace tandem::router {

size_t RankLoads::take() {
  CHECK(!loads_.empty());
  const auto least = std::min_element(loads_.begin(), loads_.end());
  ++*least;
  return size_t(least - loads_.begin());
}

void RankLoads::give_back(size_t rank) {
  // The instance may have come back with fewer ranks meanwhile.
  if (rank < loads_.size() && loads_[rank] > 0) --loads_[rank];
}

}  // namespace tandem::router
