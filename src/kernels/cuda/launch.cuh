// What the launchers and kernels of this folder share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

#include "base/check.h"
#include "kernels/backends.h"

namespace tandem::kernels::cuda {

using device::DType;
using device::TensorView;

inline cudaStream_t stream_of(const Context& ctx) {
  CHECK(ctx.stream != nullptr);
  return static_cast<cudaStream_t>(ctx.stream->handle());
}

// A launch that the driver refused ends the process: its op's output would be missing.
inline void check_launch(const Context& ctx, const char* op) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) check_failed(op, 0, cudaGetErrorString(error));
  if (ctx.launches != nullptr) ctx.launches->mark(*ctx.stream, op);
}

// More shared memory than a kernel has without asking. Once for each kernel and GPU.
template <auto kernel>
void allow_shared(size_t bytes) {
  static std::atomic<uint64_t> allowed{0};  // a bit per GPU
  int gpu = 0;
  CHECK(cudaGetDevice(&gpu) == cudaSuccess && gpu < 64);
  const uint64_t bit = uint64_t(1) << gpu;
  if ((allowed.load(std::memory_order_relaxed) & bit) != 0) return;
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)) == cudaSuccess);
  allowed.fetch_or(bit, std::memory_order_relaxed);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

__device__ inline float warp_sum(float value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Sum over the block, in every thread. `parts` is shared memory for 32 floats; its last readers are past a barrier.
__device__ inline float block_sum(float value, float* parts) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = (blockDim.x + 31) / 32;
  value = warp_sum(value);
  __syncthreads();
  if (lane == 0) parts[warp] = value;
  __syncthreads();
  return warp_sum(lane < warps ? parts[lane] : 0.0f);
}

__host__ __device__ constexpr DType bf16_or_f32(bool is_bf16) { return is_bf16 ? DType::kBF16 : DType::kF32; }

// Elements of f32, bf16 or FP8 memory.
struct Elements {
  void* data;
  DType type;

  __host__ __device__ Elements(void* at, DType type) : data(at), type(type) {}
  __host__ explicit Elements(const TensorView& view) : data(view.data()), type(view.dtype()) {}
  __device__ float load(int64_t i) const {
    if (type == DType::kF8E4M3) return float(static_cast<const __nv_fp8_e4m3*>(data)[i]);
    return type == DType::kBF16 ? __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i])
                                : static_cast<const float*>(data)[i];
  }
  __device__ void store4(int64_t i, float4 v) const {  // of f32 or bf16; i is a multiple of four
    if (type == DType::kBF16) {
      const __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y), high = __floats2bfloat162_rn(v.z, v.w);
      *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(data) + i) =
          make_uint2(reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high));
    } else {
      *reinterpret_cast<float4*>(static_cast<float*>(data) + i) = v;
    }
  }
  __device__ void store(int64_t i, float value) const {
    if (type == DType::kBF16) {
      static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(value);
    } else if (type == DType::kF8E4M3) {
      static_cast<__nv_fp8_e4m3*>(data)[i] = __nv_fp8_e4m3(value);  // to nearest even, at most 448
    } else {
      static_cast<float*>(data)[i] = value;
    }
  }
};

}  // namespace tandem::kernels::cuda
