// Attention in the absorbed form for both phases: queries go into the latents' space, attend there, and come back
// through the values' half of kv_b_proj.
#include "kernels/attention.h"

#include "kernels/cuda/latent_attention.h"
#include "kernels/cuda/plain_gemm.h"
#include "kernels/cuda/row_attention.h"
#include "kernels/cuda/tensor_gemm.h"

namespace tandem::kernels::cuda {
namespace {

using device::DType;
using device::TensorView;

void attend(const Context& ctx, const MlaShape& shape, TensorView q, const KvUpWeights& weights,
            const PagedCache& cache, std::span<const SequenceSpan> sequences, TensorView out) {
  const device::WorkspaceScope scope(*ctx.workspace);
  const int64_t rows = q.dim(0), heads = shape.num_heads, lora = shape.kv_lora_rank;
  const int64_t head_dim = shape.nope_dim + shape.rope_dim;
  float* q_latent = ctx.workspace->take_array<float>(size_t(rows * heads * lora));
  float* out_latent = ctx.workspace->take_array<float>(size_t(rows * heads * lora));

  PlainGemm up;
  set_weight(up, *weights.absorb_k[0].impl());
  up.n = lora;
  up.batch = heads;
  up.w_batch_stride = lora * shape.nope_dim * int64_t(size_of(up.w_type));
  up.x = q.data();
  up.x_is_bf16 = q.dtype() == DType::kBF16;
  up.x_row_stride = heads * head_dim;
  up.x_batch_stride = head_dim;
  up.y = q_latent;
  up.y_row_stride = heads * lora;
  up.y_batch_stride = lora;
  up.max_rows = rows;
  run_plain_gemm(ctx, up);

  run_row_attention(ctx, shape, cache, sequences, {q_latent, q.data(), up.x_is_bf16, out_latent, rows});

  PlainGemm down;
  set_weight(down, *weights.absorb_v[0].impl());
  down.n = shape.v_dim;
  down.batch = heads;
  down.w_batch_stride = lora * shape.v_dim * int64_t(size_of(down.w_type));
  down.x = out_latent;
  down.x_row_stride = heads * lora;
  down.x_batch_stride = lora;
  down.y = out.data();
  down.y_is_bf16 = out.dtype() == DType::kBF16;
  down.y_row_stride = heads * shape.v_dim;
  down.y_batch_stride = shape.v_dim;
  down.max_rows = rows;
  run_plain_gemm(ctx, down);
}

bool runs_on_tensor_cores(const Context& ctx, const MlaShape& shape, const PagedCache& cache) {
  return ctx.backend == Backend::kCuda && can_run_latent_attention(shape, cache) &&
         can_run_tensor_gemm(DType::kBF16, shape.kv_lora_rank, shape.nope_dim) &&
         can_run_tensor_gemm(DType::kBF16, shape.v_dim, shape.kv_lora_rank) && shape.rope_dim % 8 == 0;
}

// A product per head over [tokens, heads, ...] on both sides.
TensorGemm per_head(const PackedWeight& weight, int64_t tokens, int64_t heads) {
  const PackedWeight::Impl& w = *weight.impl();
  TensorGemm gemm;
  gemm.name = "absorbed product";
  gemm.dtype = DType::kBF16;
  gemm.rows = tokens;
  gemm.n = w.n / heads;
  gemm.k = w.k;
  gemm.w = static_cast<const std::byte*>(w.values.data());
  gemm.place_bytes = gemm.n * gemm.k * 2;
  gemm.num_places = gemm.num_groups = int32_t(heads);
  gemm.y_is_bf16 = true;
  return gemm;
}

void tensor_attend(const Context& ctx, const MlaShape& shape, TensorView q, const KvUpWeights& weights,
                   const PagedCache& cache, std::span<const SequenceSpan> sequences, TensorView out, bool decode) {
  const device::WorkspaceScope scope(*ctx.workspace);
  const int64_t tokens = q.dim(0), heads = shape.num_heads, lora = shape.kv_lora_rank, width = shape.row_width();
  const int64_t head_dim = shape.nope_dim + shape.rope_dim;
  auto* q_latent = ctx.workspace->take_array<uint16_t>(size_t(tokens * heads * width));
  auto* out_latent = ctx.workspace->take_array<uint16_t>(size_t(tokens * heads * lora));
  TensorGemm up = per_head(weights.absorb_k[0], tokens, heads);
  up.x = q.data();
  up.x_row_stride = heads * head_dim;
  up.x_group_stride = head_dim;
  up.y = q_latent;
  up.y_row_stride = heads * width;
  up.y_group_stride = width;
  run_tensor_gemm(ctx, up);
  copy_rope(ctx, shape, tokens, q.data(), q_latent);
  run_latent_attention(ctx, shape, cache, sequences, {q_latent, out_latent, tokens, decode});
  TensorGemm down = per_head(weights.absorb_v[0], tokens, heads);
  down.x = out_latent;
  down.x_row_stride = heads * lora;
  down.x_group_stride = lora;
  down.y = out.data();
  down.y_row_stride = heads * shape.v_dim;
  down.y_group_stride = shape.v_dim;
  run_tensor_gemm(ctx, down);
}

}  // namespace

void mla_prefill(const Context& ctx, const MlaShape& shape, TensorView q, const KvUpWeights& weights,
                 const PagedCache& cache, std::span<const SequenceSpan> sequences, TensorView out) {
  if (runs_on_tensor_cores(ctx, shape, cache)) {
    return tensor_attend(ctx, shape, q, weights, cache, sequences, out, false);
  }
  attend(ctx, shape, q, weights, cache, sequences, out);
}

void mla_decode(const Context& ctx, const MlaShape& shape, TensorView q, const KvUpWeights& weights,
                const PagedCache& cache, std::span<const SequenceSpan> sequences, TensorView out) {
  if (runs_on_tensor_cores(ctx, shape, cache)) {
    return tensor_attend(ctx, shape, q, weights, cache, sequences, out, true);
  }
  attend(ctx, shape, q, weights, cache, sequences, out);
}

size_t mla_workspace_bytes(const Context&, const MlaShape& shape, int64_t max_rows, int64_t, int64_t) {
  // In f32; two bf16 arrays, one of them with the rotated part, are less.
  return size_t(2 * max_rows * shape.num_heads * (shape.kv_lora_rank + shape.rope_dim)) * sizeof(float) + 128;
}

}  // namespace tandem::kernels::cuda
