#include "model/weights/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

namespace tandem::model {

namespace {

// The pair index at which a pair turns `rotations` times within the original context.
double correction_dim(const ModelConfig& c, double rotations) {
  const double context = c.yarn->original_max_position_embeddings;
  return c.rope_dim * std::log(context / (rotations * 2 * std::numbers::pi)) / (2 * std::log(double(c.rope_theta)));
}

}  // namespace

std::vector<float> rope_frequencies(const ModelConfig& c) {
  const int32_t pairs = c.rope_dim / 2;
  std::vector<float> frequencies(static_cast<size_t>(pairs));
  for (int32_t i = 0; i < pairs; ++i) {
    frequencies[size_t(i)] = 1.0f / std::pow(c.rope_theta, float(2 * i) / float(c.rope_dim));
  }
  if (!c.yarn) return frequencies;
  // Fast pairs keep their angle, slow ones are stretched by `factor`, between low and high a linear blend.
  const double low = std::max(std::floor(correction_dim(c, c.yarn->beta_fast)), 0.0);
  double high = std::min(std::ceil(correction_dim(c, c.yarn->beta_slow)), double(c.rope_dim - 1));
  if (low == high) high += 0.001;
  for (int32_t i = 0; i < pairs; ++i) {
    const float stretched = float(std::clamp((i - low) / (high - low), 0.0, 1.0));
    float& f = frequencies[size_t(i)];
    f = f / c.yarn->factor * stretched + f * (1.0f - stretched);
  }
  return frequencies;
}

int64_t RopeValues::bytes(const ModelConfig& config, int64_t num_positions) {
  return num_positions * config.rope_dim * int64_t(sizeof(float));
}

RopeValues::RopeValues(const ModelConfig& c, int64_t num_positions, device::Device device)
    : buffer_(device::Device::kCpu, size_t(bytes(c, num_positions))) {
  const std::vector<float> frequencies = rope_frequencies(c);
  const float magnitude =
      c.yarn ? yarn_mscale(c.yarn->factor, c.yarn->mscale) / yarn_mscale(c.yarn->factor, c.yarn->mscale_all_dim) : 1.0f;
  float* out = static_cast<float*>(buffer_.data());
  for (int64_t position = 0; position < num_positions; ++position) {
    for (float frequency : frequencies) {
      const float angle = float(position) * frequency;  // rounded to f32, as in training
      *out++ = std::cos(angle) * magnitude;
      *out++ = std::sin(angle) * magnitude;
    }
  }
  buffer_ = device::move_to(device, std::move(buffer_));
  table_ = {static_cast<const float*>(buffer_.data()), int32_t(num_positions), c.rope_dim};
}

}  // namespace tandem::model
