// The largest logit of each row: one block per row.
#include "kernels/cuda/argmax.h"
#include "kernels/cuda/launch.cuh"

namespace tandem::kernels::cuda {
namespace {

constexpr int kThreads = 1024;

struct Best {
  float value;
  int32_t id;  // -1: there is a NaN
};

__device__ Best better(Best a, Best b) {
  if (a.id < 0 || b.id < 0) return {0.0f, -1};
  if (a.value != b.value) return a.value > b.value ? a : b;
  return a.id < b.id ? a : b;
}

__device__ Best warp_best(Best best) {
  for (int offset = 16; offset > 0; offset /= 2) {
    best =
        better(best, {__shfl_xor_sync(0xffffffffu, best.value, offset), __shfl_xor_sync(0xffffffffu, best.id, offset)});
  }
  return best;
}

__global__ void __launch_bounds__(kThreads) argmax_kernel(const float* logits, int vocab, int32_t* out) {
  __shared__ Best parts[kThreads / 32];
  const float* row = logits + int64_t(blockIdx.x) * vocab;
  Best best{-INFINITY, 0};
  for (int i = threadIdx.x; i < vocab; i += kThreads) {
    const float value = row[i];
    best = better(best, {value, isnan(value) ? -1 : i});
  }
  best = warp_best(best);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  best = warp_best(parts[threadIdx.x]);
  if (threadIdx.x == 0) out[blockIdx.x] = best.id >= 0 && isfinite(best.value) ? best.id : -1;
}

}  // namespace

void argmax(const Context& ctx, TensorView logits, int32_t* out) {
  argmax_kernel<<<unsigned(logits.dim(0)), kThreads, 0, stream_of(ctx)>>>(logits.as<float>(), int(logits.dim(1)), out);
  check_launch(ctx, "argmax");
}

}  // namespace tandem::kernels::cuda
