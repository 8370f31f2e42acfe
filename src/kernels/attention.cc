#include "kernels/attention.h"

#include "base/check.h"
#include "kernels/backends.h"
#include "kernels/work.h"

namespace tandem::kernels {
namespace {

using device::DType;
using device::TensorView;

void check_cache(const Context& ctx, const MlaShape& shape, const PagedCache& cache) {
  CHECK(ctx.pool != nullptr && ctx.workspace != nullptr);
  CHECK(cache.base != nullptr && cache.dtype != DType::kI32);
  CHECK(cache.block_tokens > 0 && cache.num_blocks > 0);
  CHECK(shape.num_heads > 0 && shape.nope_dim > 0 && shape.rope_dim > 0 && shape.rope_dim % 2 == 0);
  CHECK(shape.v_dim > 0 && shape.kv_lora_rank > 0);
}

void check_rope(const Context& ctx, const RopeTable& rope, const MlaShape& shape, std::span<const int32_t> positions) {
  CHECK(rope.cos_sin != nullptr && rope.rope_dim == shape.rope_dim);
  if (is_cuda(ctx.backend)) return;
  for (const int32_t p : positions) CHECK(p >= 0 && p < rope.num_positions);
}

void check_attention(const Context& ctx, const MlaShape& shape, const TensorView& q, const PagedCache& cache,
                     std::span<const SequenceSpan> sequences, const TensorView& out) {
  check_cache(ctx, shape, cache);
  CHECK(q.dtype() == ctx.act_dtype() && out.dtype() == ctx.act_dtype());
  const int64_t rows = q.dim(0);
  CHECK(q.num_elements() == rows * shape.num_heads * (shape.nope_dim + shape.rope_dim));
  CHECK(out.num_elements() == rows * shape.num_heads * shape.v_dim);
  if (is_cuda(ctx.backend)) return;
  for (const SequenceSpan& s : sequences) {
    CHECK(s.first_row >= 0 && s.num_rows > 0 && s.prefix_len >= 0 && s.block_table != nullptr);
    CHECK(int64_t(s.first_row) + s.num_rows <= rows);
  }
}

// Rows [begin, begin + rows) of kv_b_proj.
RawWeight slice_rows(const RawWeight& w, int64_t begin, int64_t rows) {
  RawWeight part = w;
  part.data = raw_at(w, begin, 0);
  part.rows = rows;
  part.row_offset = w.row_offset + begin;
  return part;
}

}  // namespace

KvUpWeights pack_kv_up(Backend backend, Isa isa, const MlaShape& shape, const RawWeight& kv_b_proj) {
  const int64_t head_rows = shape.nope_dim + shape.v_dim;
  CHECK(!kv_b_proj.transposed);
  CHECK(kv_b_proj.rows == shape.num_heads * head_rows && kv_b_proj.cols == shape.kv_lora_rank);
  KvUpWeights weights;
  weights.expand = pack(backend, isa, {kv_b_proj});
  std::vector<RawWeight> keys, values;
  for (int64_t h = 0; h < shape.num_heads; ++h) {
    RawWeight key = slice_rows(kv_b_proj, h * head_rows, shape.nope_dim);
    key.transposed = true;
    keys.push_back(key);
    values.push_back(slice_rows(kv_b_proj, h * head_rows + shape.nope_dim, shape.v_dim));
    if (is_cuda(backend)) continue;
    weights.absorb_k.push_back(pack(backend, isa, {keys.back()}));
    weights.absorb_v.push_back(pack(backend, isa, {values.back()}));
  }
  if (is_cuda(backend)) {  // one product over all heads
    const DType type = backend == Backend::kCuda ? DType::kBF16 : DType::kF32;
    weights.absorb_k.push_back(pack_widened(backend, isa, keys, type));
    weights.absorb_v.push_back(pack_widened(backend, isa, values, type));
  }
  return weights;
}

void mla_write_cache(const Context& ctx, const MlaShape& shape, TensorView kv_a, int64_t kv_a_row_stride,
                     TensorView norm_weight, float epsilon, std::span<const int32_t> positions,
                     std::span<const int32_t> slots, const RopeTable& rope, const PagedCache& cache) {
  check_cache(ctx, shape, cache);
  check_rope(ctx, rope, shape, positions);
  CHECK(kv_a.dtype() == DType::kF32 && kv_a_row_stride >= shape.row_width());
  CHECK(norm_weight.dtype() == DType::kF32 && norm_weight.num_elements() == shape.kv_lora_rank);
  CHECK(positions.size() == slots.size());
  if (!is_cuda(ctx.backend)) {
    for (const int32_t slot : slots) CHECK(slot >= 0 && slot < int64_t(cache.num_blocks) * cache.block_tokens);
  }
  profile::OpSpan span(ctx.spans, "mla_write_cache");
  if (span) span.work({int64_t(slots.size()), shape.row_width()}, 0, 8.0 * double(slots.size()) * shape.row_width());
  switch (ctx.backend) {
    case Backend::kRef:
      return ref::mla_write_cache(ctx, shape, kv_a, kv_a_row_stride, norm_weight, epsilon, positions, slots, rope,
                                  cache);
    case Backend::kCpu:
      return cpu::mla_write_cache(ctx, shape, kv_a, kv_a_row_stride, norm_weight, epsilon, positions, slots, rope,
                                  cache);
    case Backend::kCuda:
    case Backend::kCudaF32:
      return cuda::mla_write_cache(ctx, shape, kv_a, kv_a_row_stride, norm_weight, epsilon, positions, slots, rope,
                                   cache);
  }
}

void mla_rope_q(const Context& ctx, const MlaShape& shape, TensorView q, std::span<const int32_t> positions,
                const RopeTable& rope, TensorView q_out) {
  check_rope(ctx, rope, shape, positions);
  CHECK(q.dtype() == DType::kF32 && q_out.dtype() == ctx.act_dtype() && q.num_elements() == q_out.num_elements());
  CHECK(q.num_elements() == int64_t(positions.size()) * shape.num_heads * (shape.nope_dim + shape.rope_dim));
  profile::OpSpan span(ctx.spans, "mla_rope_q");
  if (span) note_rows(span, q_out, 0, bytes_of(q, q_out));
  switch (ctx.backend) {
    case Backend::kRef: return ref::mla_rope_q(ctx, shape, q, positions, rope, q_out);
    case Backend::kCpu: return cpu::mla_rope_q(ctx, shape, q, positions, rope, q_out);
    case Backend::kCuda:
    case Backend::kCudaF32: return cuda::mla_rope_q(ctx, shape, q, positions, rope, q_out);
  }
}

void mla_prefill(const Context& ctx, const MlaShape& shape, TensorView q, const KvUpWeights& weights,
                 const PagedCache& cache, std::span<const SequenceSpan> sequences, TensorView out) {
  check_attention(ctx, shape, q, cache, sequences, out);
  profile::OpSpan span(ctx.spans, "mla_prefill");
  if (span && !is_cuda(ctx.backend)) note_attention(span, shape, cache, sequences, false, bytes_of(q, out));
  switch (ctx.backend) {
    case Backend::kRef: return ref::mla_prefill(ctx, shape, q, weights, cache, sequences, out);
    case Backend::kCpu: return cpu::mla_prefill(ctx, shape, q, weights, cache, sequences, out);
    case Backend::kCuda:
    case Backend::kCudaF32: return cuda::mla_prefill(ctx, shape, q, weights, cache, sequences, out);
  }
}

void mla_decode(const Context& ctx, const MlaShape& shape, TensorView q, const KvUpWeights& weights,
                const PagedCache& cache, std::span<const SequenceSpan> sequences, TensorView out) {
  check_attention(ctx, shape, q, cache, sequences, out);
  if (!is_cuda(ctx.backend)) {
    for (const SequenceSpan& s : sequences) CHECK(s.num_rows == 1);
  }
  profile::OpSpan span(ctx.spans, "mla_decode");
  if (span && !is_cuda(ctx.backend)) note_attention(span, shape, cache, sequences, true, bytes_of(q, out));
  switch (ctx.backend) {
    case Backend::kRef: return ref::mla_decode(ctx, shape, q, weights, cache, sequences, out);
    case Backend::kCpu: return cpu::mla_decode(ctx, shape, q, weights, cache, sequences, out);
    case Backend::kCuda:
    case Backend::kCudaF32: return cuda::mla_decode(ctx, shape, q, weights, cache, sequences, out);
  }
}

size_t mla_workspace_bytes(const Context& ctx, const MlaShape& shape, int64_t max_rows, int64_t max_sequences,
                           int64_t max_context) {
  switch (ctx.backend) {
    case Backend::kRef: return ref::mla_workspace_bytes(ctx, shape, max_rows, max_sequences, max_context);
    case Backend::kCpu: return cpu::mla_workspace_bytes(ctx, shape, max_rows, max_sequences, max_context);
    case Backend::kCuda:
    case Backend::kCudaF32: return cuda::mla_workspace_bytes(ctx, shape, max_rows, max_sequences, max_context);
  }
  return 0;
}

}  // namespace tandem::kernels
