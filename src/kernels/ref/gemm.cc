// y = x W^T in f32: each output is four running sums over K in a fixed order, whatever the number of rows.
#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "kernels/gemm_impl.h"
#include "kernels/ref/ref.h"

namespace tandem::kernels::ref {
namespace {

using device::DType;
using device::TensorView;

// Four lanes, so that plain x86-64 (and any other CPU the compiler knows) gets vector code without reassociation.
typedef float Lanes __attribute__((vector_size(16), aligned(4), may_alias));

constexpr int64_t kColumns = 8;  // outputs dequantised and used together
constexpr int64_t kRowTile = 4;

std::array<float, 256> make_f8_table() {
  std::array<float, 256> table{};
  for (size_t i = 0; i < table.size(); ++i) table[i] = device::f32_from_f8e4m3(uint8_t(i));
  return table;
}

void dequantise_row(const PackedWeight::Impl& w, int64_t n, const float* f8_table, float* out) {
  if (w.dtype == DType::kF32) {
    std::memcpy(out, static_cast<const float*>(w.values.data()) + n * w.k, size_t(w.k) * sizeof(float));
    return;
  }
  if (w.dtype == DType::kBF16) {
    const uint16_t* row = static_cast<const uint16_t*>(w.values.data()) + n * w.k;
    for (int64_t k = 0; k < w.k; ++k) out[k] = device::f32_from_bf16(row[k]);
    return;
  }
  const uint8_t* row = static_cast<const uint8_t*>(w.values.data()) + n * w.k;
  const float* scales = static_cast<const float*>(w.scales.data()) + n * w.num_segments();
  for (int64_t s = 0; s < w.num_segments(); ++s) {
    for (int64_t k = w.segments[size_t(s)]; k < w.segments[size_t(s) + 1]; ++k) out[k] = f8_table[row[k]] * scales[s];
  }
}

// Dots of kRowTile rows of x with two rows of w.
template <int kRows>
void dot_tile(const float* x, int64_t x_stride, const float* w0, const float* w1, int64_t k, float* out) {
  Lanes sum0[kRows] = {}, sum1[kRows] = {};
  int64_t i = 0;
  for (; i + 4 <= k; i += 4) {
    const Lanes a = *reinterpret_cast<const Lanes*>(w0 + i), b = *reinterpret_cast<const Lanes*>(w1 + i);
    for (int r = 0; r < kRows; ++r) {
      const Lanes v = *reinterpret_cast<const Lanes*>(x + r * x_stride + i);
      sum0[r] += v * a;
      sum1[r] += v * b;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float s0 = (sum0[r][0] + sum0[r][1]) + (sum0[r][2] + sum0[r][3]);
    float s1 = (sum1[r][0] + sum1[r][1]) + (sum1[r][2] + sum1[r][3]);
    for (int64_t j = i; j < k; ++j) {
      s0 += x[r * x_stride + j] * w0[j];
      s1 += x[r * x_stride + j] * w1[j];
    }
    out[2 * r] = s0;
    out[2 * r + 1] = s1;
  }
}

void put(const TensorView& y, int64_t i, float value, bool add) { store(y, i, add ? load(y, i) + value : value); }

}  // namespace

float load(const TensorView& x, int64_t i) {
  if (x.dtype() == DType::kF8E4M3) return device::f32_from_f8e4m3(x.as<uint8_t>()[i]);
  return x.dtype() == DType::kF32 ? x.as<float>()[i] : device::f32_from_bf16(x.as<uint16_t>()[i]);
}

void store(const TensorView& y, int64_t i, float value) {
  if (y.dtype() == DType::kF32) {
    y.as<float>()[i] = value;
  } else if (y.dtype() == DType::kF8E4M3) {
    y.as<uint8_t>()[i] = device::f8e4m3_from_f32(value);
  } else {
    y.as<uint16_t>()[i] = device::bf16_from_f32(value);
  }
}

const float* as_f32(const Context& ctx, const TensorView& x) {
  if (x.dtype() == DType::kF32) return x.as<float>();
  float* copy = ctx.workspace->take_array<float>(size_t(x.num_elements()));
  for (int64_t i = 0; i < x.num_elements(); ++i) copy[i] = load(x, i);
  return copy;
}

void pack_into(PackedWeight::Impl& impl, const std::vector<RawWeight>& stacked) {
  const size_t width = size_of(impl.dtype);
  impl.values = device::Buffer(device::Device::kCpu, size_t(impl.n * impl.k) * width);
  if (impl.dtype == DType::kF8E4M3) {
    impl.scales = device::Buffer(device::Device::kCpu, size_t(impl.n * impl.num_segments()) * sizeof(float));
  }
  char* to = static_cast<char*>(impl.values.data());
  float* scale = static_cast<float*>(impl.scales.data());
  for (const RawWeight& w : stacked) {
    for (int64_t n = 0; n < raw_outputs(w); ++n) {
      if (w.dtype == impl.dtype && !w.transposed) {
        std::memcpy(to, raw_at(w, n, 0), size_t(impl.k) * width);
        to += size_t(impl.k) * width;
      } else {
        for (int64_t k = 0; k < impl.k; ++k, to += width) {
          const float value = w.dtype == impl.dtype ? 0.0f : raw_value(w, n, k);
          std::memcpy(to, w.dtype == impl.dtype ? static_cast<const void*>(raw_at(w, n, k)) : &value, width);
        }
      }
      if (scale == nullptr) continue;
      for (int64_t s = 0; s < impl.num_segments(); ++s) *scale++ = raw_scale(w, n, impl.segments[size_t(s)]);
    }
  }
}

size_t linear_workspace_bytes(const Context& ctx, int64_t max_rows, int64_t, int64_t k) {
  return size_t(max_rows * k + ctx.pool->num_threads() * kColumns * k) * sizeof(float) + 128;
}

void linear(const Context& ctx, TensorView x, const PackedWeight& weight, TensorView y, bool add) {
  static const std::array<float, 256> f8_table = make_f8_table();
  const PackedWeight::Impl& w = *weight.impl();
  const device::WorkspaceScope scope(*ctx.workspace);
  const int64_t rows = x.dim(0), k = w.k, n = w.n;
  const float* input = as_f32(ctx, x);
  float* scratch = ctx.workspace->take_array<float>(size_t(ctx.pool->num_threads() * kColumns * k));
  ctx.pool->parallel_for((n + kColumns - 1) / kColumns, [&](int64_t block, int thread) {
    float* wide = scratch + thread * kColumns * k;
    const int64_t begin = block * kColumns, end = std::min(n, begin + kColumns);
    for (int64_t j = begin; j < end; ++j) dequantise_row(w, j, f8_table.data(), wide + (j - begin) * k);
    float out[2 * kRowTile];
    for (int64_t m = 0; m < rows;) {
      const int64_t tile = rows - m >= kRowTile ? kRowTile : 1;
      for (int64_t j = begin; j < end; j += 2) {
        const float* w0 = wide + (j - begin) * k;
        const float* w1 = j + 1 < end ? w0 + k : w0;
        if (tile == kRowTile) {
          dot_tile<kRowTile>(input + m * k, k, w0, w1, k, out);
        } else {
          dot_tile<1>(input + m * k, k, w0, w1, k, out);
        }
        for (int64_t r = 0; r < tile; ++r) {
          put(y, (m + r) * n + j, out[2 * r], add);
          if (j + 1 < end) put(y, (m + r) * n + j + 1, out[2 * r + 1], add);
        }
      }
      m += tile;
    }
  });
}

}  // namespace tandem::kernels::ref
