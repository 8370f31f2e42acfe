// Activations to FP8 in groups of 128: one warp per group, four values a lane.
#include "kernels/cuda/quantise.cuh"
#include "kernels/cuda/tensor_gemm.h"

namespace tandem::kernels::cuda {
namespace {

constexpr int kWarps = 8;

// One group, held four values a lane.
__device__ void store_group(float (&v)[4], int64_t row, int64_t k, int64_t width, const Quantised& out) {
  const int lane = threadIdx.x % 32;
  float top = fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3])));
  for (int offset = 16; offset > 0; offset /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
  const float scale = scale_of(top), inverse = 1.0f / scale;
  if (lane == 0) out.scales[k / kGroup * out.scale_stride + row] = scale;
  const int64_t at = k + lane * 4;
  // Widths are multiples of 16.
  if (at < width) *reinterpret_cast<uint32_t*>(out.values + row * width + at) = pack_fp8(v, inverse);
}

__device__ void load_group(const Elements& x, int64_t row, int64_t stride, int64_t k, int64_t width, float (&v)[4]) {
  const int64_t at = k + threadIdx.x % 32 * 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = 0;
  if (at >= width) return;
  if (x.type == DType::kBF16) {
    const uint2 bits = *reinterpret_cast<const uint2*>(static_cast<const __nv_bfloat16*>(x.data) + row * stride + at);
    v[0] = __uint_as_float(bits.x << 16);
    v[1] = __uint_as_float(bits.x & 0xffff0000u);
    v[2] = __uint_as_float(bits.y << 16);
    v[3] = __uint_as_float(bits.y & 0xffff0000u);
  } else {
    const float4 f = *reinterpret_cast<const float4*>(static_cast<const float*>(x.data) + row * stride + at);
    v[0] = f.x;
    v[1] = f.y;
    v[2] = f.z;
    v[3] = f.w;
  }
}

__global__ void __launch_bounds__(kWarps * 32)
    quantise_kernel(Elements x, const int32_t* row_of, int64_t width, Quantised out) {
  const int64_t row = blockIdx.x, from = row_of != nullptr ? row_of[row] : row;
  for (int64_t k = (int64_t(blockIdx.y) * kWarps + threadIdx.x / 32) * kGroup; k < width;
       k += int64_t(gridDim.y) * kWarps * kGroup) {
    float v[4];
    load_group(x, from, width, k, width, v);
    store_group(v, row, k, width, out);
  }
}

__global__ void __launch_bounds__(kWarps * 32) swiglu_quantise_kernel(Elements gate_up, int64_t width, Quantised out) {
  const int64_t row = blockIdx.x, k = (int64_t(blockIdx.y) * kWarps + threadIdx.x / 32) * kGroup;
  if (k >= width) return;
  float gate[4], up[4], v[4];
  load_group(gate_up, row, 2 * width, k, width, gate);
  const bool bf16 = gate_up.type == DType::kBF16;
  const Elements second(bf16 ? static_cast<void*>(static_cast<__nv_bfloat16*>(gate_up.data) + width)
                             : static_cast<void*>(static_cast<float*>(gate_up.data) + width),
                        gate_up.type);
  load_group(second, row, 2 * width, k, width, up);
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = gate[i] / (1.0f + __expf(-gate[i])) * up[i];
  store_group(v, row, k, width, out);
}

// A block per row: its values as they lie, its scales to their columns.
__global__ void __launch_bounds__(kWarps * 32)
    gather_kernel(const uint8_t* x, int64_t row_bytes, const int32_t* row_of, int64_t width, Quantised out) {
  const int64_t row = blockIdx.x;
  const uint8_t* const from = x + row_of[row] * row_bytes;
  auto* const to = reinterpret_cast<uint4*>(out.values + row * width);
  for (int64_t i = threadIdx.x; i < width / 16; i += kWarps * 32) to[i] = reinterpret_cast<const uint4*>(from)[i];
  const auto* const scales = reinterpret_cast<const float*>(from + width);
  for (int64_t i = threadIdx.x; i * kGroup < width; i += kWarps * 32)
    out.scales[i * out.scale_stride + row] = scales[i];
}

}  // namespace

size_t Quantised::bytes(int64_t rows, int64_t k) {
  return size_t(ceil_div(rows * k, 64) * 64) + size_t(ceil_div(k, kGroup) * ceil_div(rows, 16) * 16) * sizeof(float) +
         64;
}

Quantised Quantised::take(device::Workspace& workspace, int64_t rows, int64_t k) {
  Quantised out;
  out.values = workspace.take_array<uint8_t>(size_t(rows * k));
  out.scale_stride = ceil_div(rows, 16) * 16;
  out.scales = workspace.take_array<float>(size_t(ceil_div(k, kGroup) * out.scale_stride));
  return out;
}

void quantise(const Context& ctx, TensorView x, const int32_t* row_of, int64_t rows, const Quantised& out) {
  if (rows == 0) return;
  const dim3 grid(unsigned(rows), unsigned(ceil_div(x.dim(1), kWarps * kGroup)));
  quantise_kernel<<<grid, kWarps * 32, 0, stream_of(ctx)>>>(Elements(x), row_of, x.dim(1), out);
  check_launch(ctx, "quantise");
}

void gather_quantised(const Context& ctx, TensorView x, const int32_t* row_of, int64_t width, int64_t rows,
                      const Quantised& out) {
  if (rows == 0) return;
  CHECK(width % 16 == 0);
  gather_kernel<<<unsigned(rows), kWarps * 32, 0, stream_of(ctx)>>>(x.as<uint8_t>(), x.dim(1), row_of, width, out);
  check_launch(ctx, "gather fp8 rows");
}

void swiglu_quantise(const Context& ctx, TensorView gate_up, const Quantised& out) {
  if (gate_up.dim(0) == 0) return;
  const int64_t width = gate_up.dim(1) / 2;
  const dim3 grid(unsigned(gate_up.dim(0)), unsigned(ceil_div(width, kWarps * kGroup)));
  swiglu_quantise_kernel<<<grid, kWarps * 32, 0, stream_of(ctx)>>>(Elements(gate_up), width, out);
  check_launch(ctx, "swiglu_quantise");
}

}  // namespace tandem::kernels::cuda
