// Weights invented by seed (--load-format dummy): the true shapes and forms, Gaussian-like values whose scale keeps
// activations near one, so that timings are those of a real model. Each tensor is a function of (seed, name) only.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace tandem::model {

class DummyWeights {
 public:
  explicit DummyWeights(uint64_t seed);

  // [count] E4M3 values; fp8_scale() times them has standard deviation 1.
  void fill_fp8(std::string_view name, int64_t count, uint8_t* out) const;
  // [count] bf16 values with standard deviation 2^log2_deviation, log2_deviation <= 0.
  void fill_bf16(std::string_view name, int64_t count, int log2_deviation, uint16_t* out) const;
  // f32 values with the given mean and deviation.
  void fill_f32(std::string_view name, int64_t count, float mean, float deviation, float* out) const;
  static float fp8_scale();
  uint64_t seed() const { return seed_; }

 private:
  const uint64_t seed_;
  // A stretch of noise per dtype; tensors are windows at random offsets, as fast as copying.
  std::vector<uint8_t> fp8_;
  std::vector<uint16_t> bf16_;
};

}  // namespace tandem::model
