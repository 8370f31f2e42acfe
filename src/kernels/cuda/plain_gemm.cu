// 64x64 tiles of y on 256 threads, 4x4 outputs each, f32 multiply-adds over K in order. Not for speed: 20 TFLOP/s at
// most.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/plain_gemm.h"

namespace tandem::kernels::cuda {
namespace {

constexpr int kTile = 64, kStep = 16, kThreads = 256, kScaleBlock = 128;

struct NoSlots {};

__device__ float load_weight(const PlainGemm& g, const std::byte* w, const float* scales, int64_t n, int64_t k) {
  const int64_t at = n * g.w_row_stride + k;
  if (g.w_type == DType::kF32) return reinterpret_cast<const float*>(w)[at];
  if (g.w_type == DType::kBF16) return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(w)[at]);
  const float value = float(reinterpret_cast<const __nv_fp8_e4m3*>(w)[at]);
  return value * scales[n / kScaleBlock * g.scale_cols + k / kScaleBlock];
}

template <class Slots>
__global__ void __launch_bounds__(kThreads) plain_gemm_kernel(const PlainGemm g, const Slots slots) {
  __shared__ float xs[kStep][kTile + 4], ws[kStep][kTile + 4];
  const int z = blockIdx.z;
  int64_t first = 0, rows = g.max_rows;
  const std::byte* w = g.w + z * g.w_batch_stride;
  const float* scales = g.scales;
  if constexpr (!std::is_same_v<Slots, NoSlots>) {
    first = g.slot_begin[z];
    rows = g.slot_begin[z + 1] - first;
    w = slots.place_of_slot != nullptr ? slots.values[0] + slots.place_of_slot[z] * slots.place_bytes : slots.values[z];
    scales = reinterpret_cast<const float*>(w + slots.scale_offset);
  }
  const int64_t m0 = int64_t(blockIdx.y) * kTile, n0 = int64_t(blockIdx.x) * kTile;
  if (m0 >= rows) return;
  const Elements x(const_cast<void*>(g.x), bf16_or_f32(g.x_is_bf16)), y(g.y, bf16_or_f32(g.y_is_bf16));
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  float sum[4][4] = {};
  for (int64_t k0 = 0; k0 < g.k; k0 += kStep) {
    for (int i = threadIdx.x; i < kTile * kStep; i += kThreads) {
      const int r = i / kStep, c = i % kStep;
      const int64_t m = m0 + r, n = n0 + r, k = k0 + c;
      float a = 0, b = 0;
      if (k < g.k && m < rows) {
        const int64_t row = g.x_row_of != nullptr ? g.x_row_of[first + m] : first + m;
        a = x.load(row * g.x_row_stride + z * g.x_batch_stride + k);
      }
      if (k < g.k && n < g.n) b = load_weight(g, w, scales, n, k);
      xs[c][r] = a;
      ws[c][r] = b;
    }
    __syncthreads();
    for (int c = 0; c < kStep; ++c) {
      float a[4], b[4];
      for (int i = 0; i < 4; ++i) {
        a[i] = xs[c][ty + 16 * i];
        b[i] = ws[c][tx + 16 * i];
      }
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) sum[i][j] += a[i] * b[j];
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int64_t m = m0 + ty + 16 * i, n = n0 + tx + 16 * j;
      if (m >= rows || n >= g.n) continue;
      const int64_t at = (first + m) * g.y_row_stride + z * g.y_batch_stride + n;
      y.store(at, g.add ? y.load(at) + sum[i][j] : sum[i][j]);
    }
  }
}

dim3 grid_of(const PlainGemm& g) {
  return dim3(unsigned(ceil_div(g.n, kTile)), unsigned(ceil_div(g.max_rows, kTile)), unsigned(g.batch));
}

}  // namespace

void run_plain_gemm(const Context& ctx, const PlainGemm& gemm) {
  if (gemm.max_rows == 0) return;
  plain_gemm_kernel<<<grid_of(gemm), kThreads, 0, stream_of(ctx)>>>(gemm, NoSlots{});
  check_launch(ctx, "plain_gemm");
}

void run_plain_gemm(const Context& ctx, const PlainGemm& gemm, const SlotWeights& slots) {
  if (gemm.max_rows == 0) return;
  plain_gemm_kernel<<<grid_of(gemm), kThreads, 0, stream_of(ctx)>>>(gemm, slots);
  check_launch(ctx, "plain_gemm of slots");
}

void set_weight(PlainGemm& gemm, const PackedWeight::Impl& weight) {
  gemm.w = static_cast<const std::byte*>(weight.values.data());
  gemm.scales = static_cast<const float*>(weight.scales.data());
  gemm.scale_cols = int32_t(ceil_div(weight.k, kScaleBlock));
  gemm.w_type = weight.dtype;
  gemm.n = weight.n;
  gemm.k = gemm.w_row_stride = weight.k;
}

}  // namespace tandem::kernels::cuda
