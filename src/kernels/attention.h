// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) over a paged cache of latents.
// The cache row of a token is [kv_lora_rank latent (normalised) | rope_dim rotated key], one row shared by all heads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/context.h"
#include "kernels/gemm.h"

namespace tandem::kernels {

struct MlaShape {
  int32_t num_heads = 0;
  int32_t nope_dim = 0;  // qk_nope_head_dim
  int32_t rope_dim = 0;  // qk_rope_head_dim
  int32_t v_dim = 0;     // v_head_dim
  int32_t kv_lora_rank = 0;
  float softmax_scale = 0;  // 1/sqrt(nope+rope), times mscale^2 under yarn
  int32_t row_width() const { return kv_lora_rank + rope_dim; }
};

// One layer's cache: row of token p of a sequence = base + (block_table[p / block_tokens] * block_tokens +
// p % block_tokens) * row_width elements.
struct PagedCache {
  void* base = nullptr;
  device::DType dtype = device::DType::kBF16;  // or kF32, or kF8E4M3: rounded as they are, without scales
  int32_t block_tokens = 0;
  int32_t num_blocks = 0;
};

constexpr int32_t kMaxF8CacheRow = 4096;  // row_width of a kF8E4M3 cache, at most

// One sequence of a batch: its query tokens are rows [first_row, first_row + num_rows) of the batch, at positions
// [prefix_len, prefix_len + num_rows); keys are positions [0, prefix_len + num_rows), causal.
struct SequenceSpan {
  int32_t first_row = 0;
  int32_t num_rows = 0;  // 1 in decode
  int32_t prefix_len = 0;
  const int32_t* block_table = nullptr;  // block ids, ceil((prefix_len + num_rows) / block_tokens) of them
};

// cos and sin for interleaved pairs (DeepSeek's order): cos_sin[position][rope_dim/2] pairs of (cos, sin), f32, already
// multiplied by yarn's mscale where the configuration asks for it. Built by the model once.
struct RopeTable {
  const float* cos_sin = nullptr;
  int32_t num_positions = 0;
  int32_t rope_dim = 0;
};

// Both kinds of kv_b_proj that attention needs, packed per head at load.
struct KvUpWeights {
  PackedWeight expand;                 // [heads*(nope+v), kv_lora]: prefill expands latents to keys and values
  std::vector<PackedWeight> absorb_k;  // per head, outputs kv_lora, inputs nope: q_latent = W_uk^T q_nope
  std::vector<PackedWeight> absorb_v;  // per head, outputs v, inputs kv_lora
  // On a GPU each of the two holds one weight: the heads' stacked, widened with their scales.
};
KvUpWeights pack_kv_up(Backend backend, Isa isa, const MlaShape& shape, const RawWeight& kv_b_proj);

// Normalises the latent part of kv_a, rotates the key part, writes both into the cache.
//   kv_a [T, kv_lora+rope] f32, rows kv_a_row_stride elements apart (a column slice of a fused projection);
//   norm_weight [kv_lora] f32; positions [T]; slots [T]: physical row (block * block_tokens + offset) in the cache;
//   on a GPU -1 for a row that is not kept.
void mla_write_cache(const Context& ctx, const MlaShape& shape, device::TensorView kv_a, int64_t kv_a_row_stride,
                     device::TensorView norm_weight, float epsilon, std::span<const int32_t> positions,
                     std::span<const int32_t> slots, const RopeTable& rope, const PagedCache& cache);

// Rotates q's rope part:  q [T, heads, nope+rope] f32 -> q_out the same shape in ctx.act_dtype().
void mla_rope_q(const Context& ctx, const MlaShape& shape, device::TensorView q, std::span<const int32_t> positions,
                const RopeTable& rope, device::TensorView q_out);

// Attention of many query rows per sequence. Keys and values are expanded from the cache (also the batch's own rows,
// which were written before), in key blocks at fixed absolute positions, so the result for a row does not depend on how
// the prompt was chunked or batched.
//   q [T, heads, nope+rope] act_dtype; out [T, heads*v] act_dtype.
void mla_prefill(const Context& ctx, const MlaShape& shape, device::TensorView q, const KvUpWeights& weights,
                 const PagedCache& cache, std::span<const SequenceSpan> sequences, device::TensorView out);

// Attention of one query row per sequence, absorbed form: scores against latents directly. The split over keys is a
// function of position only.   Shapes as mla_prefill.
void mla_decode(const Context& ctx, const MlaShape& shape, device::TensorView q, const KvUpWeights& weights,
                const PagedCache& cache, std::span<const SequenceSpan> sequences, device::TensorView out);

// Bytes of workspace for either, at these limits.
size_t mla_workspace_bytes(const Context& ctx, const MlaShape& shape, int64_t max_rows, int64_t max_sequences,
                           int64_t max_context);

}  // namespace tandem::kernels
