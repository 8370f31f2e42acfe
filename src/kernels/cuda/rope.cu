// Filling the cache and rotating queries: one block per token.
#include "kernels/cuda/latent_attention.h"
#include "kernels/cuda/launch.cuh"

namespace tandem::kernels::cuda {
namespace {

constexpr int kThreads = 128;

__device__ float rotated(const float* pair_of, const float* cos_sin, int i) {
  const float c = cos_sin[i & ~1], s = cos_sin[i | 1], a = pair_of[i & ~1], b = pair_of[i | 1];
  return (i & 1) == 0 ? a * c - b * s : a * s + b * c;
}

__global__ void write_cache_kernel(const float* kv_a, int64_t stride, const float* weight, float epsilon, int lora,
                                   const int32_t* positions, const int32_t* slots, RopeTable rope, Elements cache) {
  __shared__ float parts[32];
  if (slots[blockIdx.x] < 0) return;
  const float* row = kv_a + int64_t(blockIdx.x) * stride;
  float sum = 0;
  for (int i = threadIdx.x; i < lora; i += blockDim.x) sum += row[i] * row[i];
  const float factor = 1.0f / sqrtf(block_sum(sum, parts) / float(lora) + epsilon);
  const int64_t to = int64_t(slots[blockIdx.x]) * (lora + rope.rope_dim);
  for (int i = threadIdx.x; i < lora; i += blockDim.x) cache.store(to + i, row[i] * factor * weight[i]);
  const float* cos_sin = rope.cos_sin + int64_t(positions[blockIdx.x]) * rope.rope_dim;
  for (int i = threadIdx.x; i < rope.rope_dim; i += blockDim.x) {
    cache.store(to + lora + i, rotated(row + lora, cos_sin, i));
  }
}

__global__ void rope_q_kernel(const float* q, int heads, int nope, const int32_t* positions, RopeTable rope,
                              Elements out) {
  const int width = nope + rope.rope_dim;
  const int64_t row = int64_t(blockIdx.x) * heads * width;
  const float* cos_sin = rope.cos_sin + int64_t(positions[blockIdx.x]) * rope.rope_dim;
  for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < heads * width; i += gridDim.y * blockDim.x) {
    const int at = i % width;
    const float* head = q + row + i - at;
    out.store(row + i, at < nope ? head[at] : rotated(head + nope, cos_sin, at - nope));
  }
}

__global__ void copy_rope_kernel(const __nv_bfloat16* q, unsigned heads, int nope, int rope, __nv_bfloat16* out,
                                 int lora) {
  const int64_t row = int64_t(blockIdx.x) * heads + blockIdx.y * blockDim.y + threadIdx.y;
  if (blockIdx.y * blockDim.y + threadIdx.y >= heads) return;
  for (int i = threadIdx.x; i < rope; i += blockDim.x) {
    out[row * (lora + rope) + lora + i] = q[row * (nope + rope) + nope + i];
  }
}

}  // namespace

void copy_rope(const Context& ctx, const MlaShape& shape, int64_t tokens, const void* q, void* out) {
  if (tokens == 0) return;
  const dim3 grid(unsigned(tokens), unsigned(ceil_div(shape.num_heads, 16)));
  copy_rope_kernel<<<grid, dim3(32, 16), 0, stream_of(ctx)>>>(static_cast<const __nv_bfloat16*>(q),
                                                              unsigned(shape.num_heads), shape.nope_dim, shape.rope_dim,
                                                              static_cast<__nv_bfloat16*>(out), shape.kv_lora_rank);
  check_launch(ctx, "copy_rope");
}

void mla_write_cache(const Context& ctx, const MlaShape& shape, TensorView kv_a, int64_t kv_a_row_stride,
                     TensorView norm_weight, float epsilon, std::span<const int32_t> positions,
                     std::span<const int32_t> slots, const RopeTable& rope, const PagedCache& cache) {
  if (positions.empty()) return;
  write_cache_kernel<<<unsigned(positions.size()), kThreads, 0, stream_of(ctx)>>>(
      kv_a.as<float>(), kv_a_row_stride, norm_weight.as<float>(), epsilon, shape.kv_lora_rank, positions.data(),
      slots.data(), rope, Elements(cache.base, cache.dtype));
  check_launch(ctx, "mla_write_cache");
}

void mla_rope_q(const Context& ctx, const MlaShape& shape, TensorView q, std::span<const int32_t> positions,
                const RopeTable& rope, TensorView q_out) {
  if (positions.empty()) return;
  const int64_t row = int64_t(shape.num_heads) * (shape.nope_dim + shape.rope_dim);
  const dim3 grid(unsigned(positions.size()), unsigned(ceil_div(row, 8 * kThreads)));
  rope_q_kernel<<<grid, kThreads, 0, stream_of(ctx)>>>(q.as<float>(), shape.num_heads, shape.nope_dim, positions.data(),
                                                       rope, Elements(q_out));
  check_launch(ctx, "mla_rope_q");
}

}  // namespace tandem::kernels::cuda
