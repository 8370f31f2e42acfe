// cos and sin of the rotary embedding, with yarn's frequency blend (arXiv 2309.00071) and magnitude where configured.
#pragma once

#include <vector>

#include "device/buffer.h"
#include "kernels/attention.h"
#include "model/config.h"

namespace tandem::model {

// Angle per position of each pair, [rope_dim / 2], in f32 as the training code has them.
std::vector<float> rope_frequencies(const ModelConfig& config);

class RopeValues {
 public:
  RopeValues(const ModelConfig& config, int64_t num_positions, device::Device device = device::Device::kCpu);
  const kernels::RopeTable& table() const { return table_; }
  static int64_t bytes(const ModelConfig& config, int64_t num_positions);

 private:
  device::Buffer buffer_;
  kernels::RopeTable table_;
};

}  // namespace tandem::model
