// LengthBuckets: prompt lengths cut into ranges of equal work, one for each instance (policy bucket), so that long
// prompts do not stand in the way of short ones. The ranges follow the lengths seen lately. Pure; one thread.
#pragma once

#include <optional>
#include <vector>

#include "base/clock.h"

namespace tandem::router {

class LengthBuckets {
 public:
  // Remembers a prompt's length in bytes and says which of num_buckets it falls into; nothing until lengths are known.
  std::optional<size_t> place(size_t bytes, size_t num_buckets, TimePoint now);

 private:
  void adjust(size_t num_buckets);

  static constexpr Duration kAdjustEvery = std::chrono::seconds(5);
  static constexpr size_t kMostSamples = 4096;  // the newest ones

  std::vector<size_t> samples_;  // a ring
  size_t next_sample_ = 0, num_buckets_ = 0;
  std::vector<size_t> bounds_;  // ascending; bucket i ends below bounds_[i], the last one has no end
  TimePoint next_adjust_{};
};

}  // namespace tandem::router
