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

// Elements of f32 or bf16 memory.
struct Elements {
  void* data;
  bool is_bf16;

  __host__ __device__ Elements(void* at, bool bf16) : data(at), is_bf16(bf16) {}
  __host__ explicit Elements(const TensorView& view) : data(view.data()), is_bf16(view.dtype() == DType::kBF16) {}
  __device__ float load(int64_t i) const {
    return is_bf16 ? __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]) : static_cast<const float*>(data)[i];
  }
  __device__ void store4(int64_t i, float4 v) const {  // i is a multiple of four
    if (is_bf16) {
      const __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y), high = __floats2bfloat162_rn(v.z, v.w);
      *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(data) + i) =
          make_uint2(reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high));
    } else {
      *reinterpret_cast<float4*>(static_cast<float*>(data) + i) = v;
    }
  }
  __device__ void store(int64_t i, float value) const {
    if (is_bf16) {
      static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(value);
    } else {
      static_cast<float*>(data)[i] = value;
    }
  }
};

}  // namespace tandem::kernels::cuda
