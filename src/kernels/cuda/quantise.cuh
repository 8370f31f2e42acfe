// The rule by which activations become FP8: groups of 128 inputs, scale = largest magnitude / 448 (kernels/fp8_rows.h
// does the same on the CPU).
#pragma once

#include "kernels/cuda/launch.cuh"

namespace tandem::kernels::cuda {

constexpr int kGroup = 128;

__device__ inline float scale_of(float top) { return fmaxf(top, 1e-10f) / 448.0f; }

// The lowest byte is the first value.
__device__ inline uint32_t pack_fp8(const float* v, float inverse) {
  uint32_t packed = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    packed |= uint32_t(__nv_cvt_float_to_fp8(v[i] * inverse, __NV_SATFINITE, __NV_E4M3)) << (8 * i);
  }
  return packed;
}

}  // namespace tandem::kernels::cuda
