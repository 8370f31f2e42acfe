// Weighted sum of each token's experts into the residual stream, in the gate's order.
#include "kernels/cuda/launch.cuh"

namespace tandem::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void combine_kernel(const float* const* rows, const float* weights, int top_k, int64_t hidden, float* out) {
  const int64_t i = int64_t(blockIdx.y) * blockDim.x + threadIdx.x, token = blockIdx.x;
  if (i >= hidden) return;
  float sum = 0;
  for (int k = 0; k < top_k; ++k) sum += weights[token * top_k + k] * rows[token * top_k + k][i];
  out[token * hidden + i] += sum;
}

}  // namespace

void combine(const Context& ctx, std::span<const float* const> rows, TensorView weights, TensorView out) {
  if (out.dim(0) == 0) return;
  const dim3 grid(unsigned(out.dim(0)), unsigned(ceil_div(out.dim(1), kThreads)));
  combine_kernel<<<grid, kThreads, 0, stream_of(ctx)>>>(rows.data(), weights.as<float>(), int(weights.dim(1)),
                                                        out.dim(1), out.as<float>());
  check_launch(ctx, "combine");
}

}  // namespace tandem::kernels::cuda
