// Inputs and comparisons shared by the kernel tests. Everything is a function of a seed.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/context.h"
#include "kernels/gemm.h"

namespace tandem::kernels::test {

using device::DType;
using device::TensorView;

// A context with its own pool and workspace.
struct Rig {
  explicit Rig(Backend backend, Isa isa = Isa::kAvx2, int threads = 2, size_t workspace_bytes = size_t(24) << 20)
      : pool(threads), workspace(device::Device::kCpu, workspace_bytes) {
    ctx.backend = backend;
    ctx.isa = isa;
    ctx.pool = &pool;
    ctx.workspace = &workspace;
  }
  device::ThreadPool pool;
  device::Workspace workspace;
  Context ctx;
};

inline std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    if (cpu_supports(isa)) isas.push_back(isa);
  }
  return isas;
}

inline std::vector<float> random_floats(size_t count, uint64_t seed, float scale = 1.0f) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& v : values) v = normal(random);
  return values;
}

// Rounds in place and returns the bf16 bits, so that an f32 oracle sees the very same inputs.
inline std::vector<uint16_t> round_to_bf16(std::vector<float>& values) {
  std::vector<uint16_t> bits(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    bits[i] = device::bf16_from_f32(values[i]);
    values[i] = device::f32_from_bf16(bits[i]);
  }
  return bits;
}

inline TensorView view(std::vector<float>& v, std::initializer_list<int64_t> shape) {
  return TensorView(v.data(), DType::kF32, shape);
}
inline TensorView view(std::vector<uint16_t>& v, std::initializer_list<int64_t> shape) {
  return TensorView(v.data(), DType::kBF16, shape);
}

// A checkpoint's matrix: bytes, and for FP8 its 128x128 scales.
struct Matrix {
  Matrix(DType dtype, int64_t rows, int64_t cols, uint64_t seed) : dtype(dtype), rows(rows), cols(cols) {
    std::vector<float> values = random_floats(size_t(rows * cols), seed);
    bytes.resize(values.size() * size_of(dtype));
    for (size_t i = 0; i < values.size(); ++i) {
      if (dtype == DType::kF32) reinterpret_cast<float*>(bytes.data())[i] = values[i];
      if (dtype == DType::kBF16) reinterpret_cast<uint16_t*>(bytes.data())[i] = device::bf16_from_f32(values[i]);
      if (dtype == DType::kF8E4M3) bytes[i] = device::f8e4m3_from_f32(values[i] * (i % 7 == 0 ? 0.005f : 1.0f));
    }
    if (dtype != DType::kF8E4M3) return;
    std::mt19937_64 random(seed + 1);
    std::uniform_real_distribution<float> uniform(0.5f, 2.0f);
    scales.resize(size_t((rows + 127) / 128 * scale_stride()));
    for (float& s : scales) s = uniform(random);
  }
  int64_t scale_stride() const { return (cols + 127) / 128; }

  // Rows [row, row + count) and columns [col, col + width).
  RawWeight part(int64_t row, int64_t count, int64_t col, int64_t width) const {
    RawWeight w;
    w.data = bytes.data() + size_t(row * cols + col) * size_of(dtype);
    w.dtype = dtype;
    w.rows = count;
    w.cols = width;
    w.row_stride = cols;
    w.scale_inv = scales.empty() ? nullptr : scales.data();
    w.scale_stride = scale_stride();
    w.row_offset = row;
    w.col_offset = col;
    return w;
  }
  RawWeight all() const { return part(0, rows, 0, cols); }

  float at(int64_t row, int64_t col) const {
    const size_t i = size_t(row * cols + col);
    if (dtype == DType::kF32) return reinterpret_cast<const float*>(bytes.data())[i];
    if (dtype == DType::kBF16) return device::f32_from_bf16(reinterpret_cast<const uint16_t*>(bytes.data())[i]);
    return device::f32_from_f8e4m3(bytes[i]) * scales[size_t(row / 128 * scale_stride() + col / 128)];
  }

  DType dtype;
  int64_t rows, cols;
  std::vector<uint8_t> bytes;
  std::vector<float> scales;
};

inline double norm(const std::vector<float>& v) {
  double sum = 0;
  for (const float x : v) sum += double(x) * x;
  return std::sqrt(sum);
}

// ||got - want|| / ||want||.
inline double relative_error(const std::vector<float>& got, const std::vector<float>& want) {
  double error = 0, size = 0;
  EXPECT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    error += (double(got[i]) - want[i]) * (double(got[i]) - want[i]);
    size += double(want[i]) * want[i];
  }
  return size == 0 ? std::sqrt(error) : std::sqrt(error / size);
}

// Largest |got - want| over the root mean square of want: catches one wrong element among many right ones.
inline double worst_error(const std::vector<float>& got, const std::vector<float>& want) {
  double worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::fabs(double(got[i]) - want[i]);
    if (!(error <= worst)) worst = error;
  }
  return worst / (norm(want) / std::sqrt(double(want.size())) + 1e-30);
}

inline std::vector<float> widen(const std::vector<uint16_t>& bits) {
  std::vector<float> values(bits.size());
  for (size_t i = 0; i < bits.size(); ++i) values[i] = device::f32_from_bf16(bits[i]);
  return values;
}

}  // namespace tandem::kernels::test
