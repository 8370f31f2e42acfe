#include "model/weights/dummy_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "device/dtype.h"

namespace tandem::model {

namespace {

constexpr size_t kNoise = size_t(1) << 20;  // values of a pool
constexpr size_t kRun = 8192;               // consecutive values taken from one offset
constexpr float kFp8Gain = 64.0f;           // puts +-4 deviations inside E4M3's +-448 and well above its subnormals

// splitmix64 (Steele, Lea, Flood 2014): state to state and to an output.
uint64_t next(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

uint64_t state_for(uint64_t seed, std::string_view name) {
  uint64_t state = seed ^ 0xcbf29ce484222325u;
  for (char c : name) state = (state ^ uint8_t(c)) * 0x100000001b3u;
  return state;
}

// Sum of four uniforms, scaled to deviation 1: bounded by 3.47 and close enough to a Gaussian.
float gaussian(uint64_t& state) {
  const uint64_t bits = next(state);
  float sum = 0;
  for (int i = 0; i < 4; ++i) sum += float((bits >> (16 * i)) & 0xffff) * (1.0f / 65536.0f) - 0.5f;
  return sum * std::sqrt(3.0f);
}

template <class T>
void copy_runs(const std::vector<T>& pool, uint64_t state, int64_t count, T* out) {
  for (int64_t done = 0; done < count; done += int64_t(kRun)) {
    const size_t n = size_t(std::min<int64_t>(count - done, int64_t(kRun)));
    std::memcpy(out + done, pool.data() + next(state) % (kNoise - kRun), n * sizeof(T));
  }
}

}  // namespace

DummyWeights::DummyWeights(uint64_t seed) : seed_(seed), fp8_(kNoise), bf16_(kNoise) {
  uint64_t state = state_for(seed, "noise");
  for (size_t i = 0; i < kNoise; ++i) {
    const float value = gaussian(state);
    fp8_[i] = device::f8e4m3_from_f32(value * kFp8Gain);
    bf16_[i] = device::bf16_from_f32(value);
  }
}

float DummyWeights::fp8_scale() { return 1.0f / kFp8Gain; }

void DummyWeights::fill_fp8(std::string_view name, int64_t count, uint8_t* out) const {
  copy_runs(fp8_, state_for(seed_, name), count, out);
}

void DummyWeights::fill_bf16(std::string_view name, int64_t count, int log2_deviation, uint16_t* out) const {
  CHECK(log2_deviation <= 0);
  copy_runs(bf16_, state_for(seed_, name), count, out);
  // A power of two changes the exponent bits only; what would become subnormal becomes zero.
  const uint16_t shift = uint16_t(-log2_deviation << 7);
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t bits = out[i];
    out[i] = uint16_t((bits & 0x7f80) > shift ? bits - shift : bits & 0x8000);
  }
}

void DummyWeights::fill_f32(std::string_view name, int64_t count, float mean, float deviation, float* out) const {
  uint64_t state = state_for(seed_, name);
  for (int64_t i = 0; i < count; ++i) out[i] = mean + deviation * gaussian(state);
}

}  // namespace tandem::model
