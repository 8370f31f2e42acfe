#include "router/length_buckets.h"

#include <algorithm>
#include <numeric>

namespace tandem::router {

std::optional<size_t> LengthBuckets::place(size_t bytes, size_t num_buckets, TimePoint now) {
  if (!samples_.empty() && (now >= next_adjust_ || num_buckets != num_buckets_)) {
    adjust(num_buckets);
    next_adjust_ = now + kAdjustEvery;
  }
  if (samples_.size() < kMostSamples) {
    samples_.push_back(bytes);
  } else {
    samples_[next_sample_++ % kMostSamples] = bytes;
  }
  if (num_buckets_ != num_buckets) return std::nullopt;
  return size_t(std::upper_bound(bounds_.begin(), bounds_.end(), bytes) - bounds_.begin());
}

// Each bucket gets about the same sum of lengths.
void LengthBuckets::adjust(size_t num_buckets) {
  std::vector<size_t> sorted = samples_;
  std::sort(sorted.begin(), sorted.end());
  const double total = std::accumulate(sorted.begin(), sorted.end(), 0.0);
  bounds_.clear();
  double sum = 0;
  for (const size_t bytes : sorted) {
    while (bounds_.size() + 1 < num_buckets && sum >= total * double(bounds_.size() + 1) / double(num_buckets)) {
      bounds_.push_back(bytes);
    }
    sum += double(bytes);
  }
  while (bounds_.size() + 1 < num_buckets) bounds_.push_back(sorted.back() + 1);
  num_buckets_ = num_buckets;
}

}  // namespace tandem::router
