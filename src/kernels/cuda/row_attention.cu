// One block per query row and head; each warp takes every fourth key with a running softmax, merged at the end. Latents
// are read once per head, so this is for correctness, not for many heads.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/row_attention.h"

namespace tandem::kernels::cuda {
namespace {

constexpr int kWarps = 4, kLanes = 32;
constexpr int kMaxLatent = 16, kMaxRope = 4;  // elements of one lane: latents up to 512, rotated keys up to 128

// The sequence that a row of the batch belongs to: the last one that begins at or before it.
__device__ int sequence_of(const SequenceSpan* sequences, int count, int row) {
  int low = 0, high = count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (sequences[middle].first_row <= row) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

struct Shape {
  int heads, nope, rope, lora;
  float scale;
};

__global__ void __launch_bounds__(kWarps* kLanes)
    row_attention_kernel(Shape s, PagedCache cache, const SequenceSpan* sequences, int num_sequences, RowAttention in) {
  __shared__ float tops[kWarps], sums[kWarps];
  extern __shared__ float merged[];  // [kWarps][lora]
  const int row = blockIdx.x, head = blockIdx.y, warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const SequenceSpan span = sequences[sequence_of(sequences, num_sequences, row)];
  const int keys = span.prefix_len + (row - span.first_row) + 1, width = s.lora + s.rope;
  const float* q_latent = in.q_latent + (int64_t(row) * s.heads + head) * s.lora;
  const Elements q(const_cast<void*>(in.q), bf16_or_f32(in.q_is_bf16)), rows(cache.base, cache.dtype);
  const int64_t q_rope = (int64_t(row) * s.heads + head) * (s.nope + s.rope) + s.nope;
  float query[kMaxLatent], query_rope[kMaxRope], acc[kMaxLatent];
#pragma unroll
  for (int i = 0; i < kMaxLatent; ++i) {
    const int at = i * kLanes + lane;
    query[i] = at < s.lora ? q_latent[at] : 0.0f;
    acc[i] = 0;
  }
#pragma unroll
  for (int i = 0; i < kMaxRope; ++i) {
    const int at = i * kLanes + lane;
    query_rope[i] = at < s.rope ? q.load(q_rope + at) : 0.0f;
  }
  float top = -INFINITY, sum = 0;
  for (int key = warp; key < keys; key += kWarps) {
    const int block = span.block_table[key / cache.block_tokens];
    const int64_t at = (int64_t(block) * cache.block_tokens + key % cache.block_tokens) * width;
    float latent[kMaxLatent], score = 0;
#pragma unroll
    for (int i = 0; i < kMaxLatent; ++i) {
      const int j = i * kLanes + lane;
      latent[i] = j < s.lora ? rows.load(at + j) : 0.0f;
      score += query[i] * latent[i];
    }
#pragma unroll
    for (int i = 0; i < kMaxRope; ++i) {
      const int j = i * kLanes + lane;
      if (j < s.rope) score += query_rope[i] * rows.load(at + s.lora + j);
    }
    score = warp_sum(score) * s.scale;
    const float next = fmaxf(top, score), shrink = expf(top - next), p = expf(score - next);
    sum = sum * shrink + p;
#pragma unroll
    for (int i = 0; i < kMaxLatent; ++i) acc[i] = acc[i] * shrink + p * latent[i];
    top = next;
  }
  if (lane == 0) {
    tops[warp] = top;
    sums[warp] = sum;
  }
#pragma unroll
  for (int i = 0; i < kMaxLatent; ++i) {
    const int j = i * kLanes + lane;
    if (j < s.lora) merged[warp * s.lora + j] = acc[i];
  }
  __syncthreads();
  float best = tops[0];
  for (int w = 1; w < kWarps; ++w) best = fmaxf(best, tops[w]);
  float total = 0;
  for (int w = 0; w < kWarps; ++w) total += sums[w] * expf(tops[w] - best);  // a warp without keys has exp(-inf)
  float* out = in.out_latent + (int64_t(row) * s.heads + head) * s.lora;
  for (int j = threadIdx.x; j < s.lora; j += blockDim.x) {
    float value = 0;
    for (int w = 0; w < kWarps; ++w) value += merged[w * s.lora + j] * expf(tops[w] - best);
    out[j] = value / total;
  }
}

}  // namespace

void run_row_attention(const Context& ctx, const MlaShape& shape, const PagedCache& cache,
                       std::span<const SequenceSpan> sequences, const RowAttention& rows) {
  if (rows.num_rows == 0) return;
  CHECK(shape.kv_lora_rank <= kMaxLatent * kLanes && shape.rope_dim <= kMaxRope * kLanes);
  const Shape s{shape.num_heads, shape.nope_dim, shape.rope_dim, shape.kv_lora_rank, shape.softmax_scale};
  const dim3 grid(unsigned(rows.num_rows), unsigned(shape.num_heads));
  row_attention_kernel<<<grid, kWarps * kLanes, size_t(kWarps * s.lora) * sizeof(float), stream_of(ctx)>>>(
      s, cache, sequences.data(), int(sequences.size()), rows);
  check_launch(ctx, "row_attention");
}

}  // namespace tandem::kernels::cuda
