// Attention of single rows over latents in f32: any shape, any types. Private to this folder.
#pragma once

#include "kernels/backends.h"

namespace tandem::kernels::cuda {

// q_latent and out_latent [T, heads, kv_lora] f32; q [T, heads, nope + rope] f32 or bf16, of which the rope part is
// read.
struct RowAttention {
  const float* q_latent = nullptr;
  const void* q = nullptr;
  bool q_is_bf16 = false;
  float* out_latent = nullptr;
  int64_t num_rows = 0;
};
void run_row_attention(const Context& ctx, const MlaShape& shape, const PagedCache& cache,
                       std::span<const SequenceSpan> sequences, const RowAttention& rows);

}  // namespace tandem::kernels::cuda
