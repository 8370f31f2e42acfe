// RankLoads: how much each data-parallel rank of an instance has to do (--dp-aware). Pure bookkeeping; one thread.
#pragma once

#include <cstddef>
#include <vector>

namespace tandem::router {

// Sequences in flight on each data-parallel rank of an instance.
class RankLoads {
 public:
  // As the instance says it has; 0 and 1: nothing to choose.
  void resize(size_t num_ranks) { loads_.resize(num_ranks); }
  size_t num_ranks() const { return loads_.size(); }
  // Takes the rank with the fewest, the lowest of equals.
  size_t take();
  void give_back(size_t rank);
  const std::vector<size_t>& loads() const { return loads_; }

 private:
  std::vector<size_t> loads_;
};

}  // namespace tandem::router
