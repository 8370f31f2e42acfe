// Rng: seeded draws that are the same on every machine (the standard library's distributions are not).
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "base/check.h"

namespace tandem::loadgen {

class Rng {
 public:
  // Streams of one seed are independent: lengths do not change when content is drawn differently.
  Rng(uint64_t seed, uint64_t stream) : engine_(mix(seed + 0x9E3779B97F4A7C15ull * (stream + 1))) {}

  uint64_t bits() { return engine_(); }
  // Uniform in [0, bound); bias below bound / 2^64.
  uint64_t below(uint64_t bound) {
    CHECK(bound > 0);
    return uint64_t((static_cast<unsigned __int128>(bits()) * bound) >> 64);
  }
  // Uniform in [low, high].
  int64_t between(int64_t low, int64_t high) {
    CHECK(low <= high);
    return low + int64_t(below(uint64_t(high - low) + 1));
  }
  // Uniform in [0, 1).
  double unit() { return double(bits() >> 11) * 0x1p-53; }
  double exponential(double mean) { return -std::log1p(-unit()) * mean; }

  template <class T>
  void shuffle(std::vector<T>& items) {
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[below(i)]);
  }

 private:
  static uint64_t mix(uint64_t x) {  // splitmix64's finaliser
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
  }
  std::mt19937_64 engine_;
};

}  // namespace tandem::loadgen
