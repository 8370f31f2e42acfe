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

// The same four values at a time.
__global__ void combine_vector_kernel(const float* const* rows, const float* weights, int top_k, int vectors,
                                      float4* out) {
  const int i = int(blockIdx.y) * blockDim.x + threadIdx.x;
  const int64_t token = blockIdx.x;
  if (i >= vectors) return;
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
  for (int k = 0; k < top_k; ++k) {
    const float w = weights[token * top_k + k];
    const float4 v = reinterpret_cast<const float4*>(rows[token * top_k + k])[i];
    sum.x += w * v.x;
    sum.y += w * v.y;
    sum.z += w * v.z;
    sum.w += w * v.w;
  }
  float4& to = out[token * vectors + i];
  to = make_float4(to.x + sum.x, to.y + sum.y, to.z + sum.z, to.w + sum.w);
}

}  // namespace

void combine(const Context& ctx, std::span<const float* const> rows, TensorView weights, TensorView out) {
  if (out.dim(0) == 0) return;
  if (out.dim(1) % 4 == 0) {
    const int64_t vectors = out.dim(1) / 4;
    const dim3 grid(unsigned(out.dim(0)), unsigned(ceil_div(vectors, kThreads)));
    combine_vector_kernel<<<grid, kThreads, 0, stream_of(ctx)>>>(rows.data(), weights.as<float>(), int(weights.dim(1)),
                                                                 int(vectors), out.as<float4>());
    return check_launch(ctx, "combine");
  }
  const dim3 grid(unsigned(out.dim(0)), unsigned(ceil_div(out.dim(1), kThreads)));
  combine_kernel<<<grid, kThreads, 0, stream_of(ctx)>>>(rows.data(), weights.as<float>(), int(weights.dim(1)),
                                                        out.dim(1), out.as<float>());
  check_launch(ctx, "combine");
}

}  // namespace tandem::kernels::cuda
