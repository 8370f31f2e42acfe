// Attention over latents on tensor cores, both phases. Private to this folder.
#pragma once

#include "kernels/backends.h"

namespace tandem::kernels::cuda {

// q and out are rows of one (token, head) each: q [T * heads, kv_lora + rope] bf16, out [T * heads, kv_lora] bf16.
struct LatentAttention {
  const void* q = nullptr;
  void* out = nullptr;
  int64_t num_tokens = 0;
  bool one_token_each = false;  // decode: sequence i is token i
};
// The rotated part of queries [T, heads, nope + rope] into rows [T * heads, kv_lora + rope], both bf16.
void copy_rope(const Context& ctx, const MlaShape& shape, int64_t tokens, const void* q, void* out);
// Latents of 128 or 512, a rotated part of at most 64, a bf16 cache with blocks of 8, 16, 32 or a multiple of 64
// tokens.
bool can_run_latent_attention(const MlaShape& shape, const PagedCache& cache);
void run_latent_attention(const Context& ctx, const MlaShape& shape, const PagedCache& cache,
                          std::span<const SequenceSpan> sequences, const LatentAttention& rows);

}  // namespace tandem::kernels::cuda
