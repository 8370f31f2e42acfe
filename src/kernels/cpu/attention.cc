// The row-wise parts of attention: filling the cache, rotating queries.
#include "kernels/attention.h"

#include <algorithm>

#include "kernels/backends.h"
#include "kernels/cpu/mla.h"
#include "kernels/cpu/rows.h"

namespace tandem::kernels::cpu {

using device::DType;
using device::TensorView;

void mla_write_cache(const Context& ctx, const MlaShape& shape, TensorView kv_a, int64_t kv_a_row_stride,
                     TensorView norm_weight, float epsilon, std::span<const int32_t> positions,
                     std::span<const int32_t> slots, const RopeTable& rope, const PagedCache& cache) {
  constexpr int64_t kPiece = 64;  // rotated before they are rounded
  const Leaf& leaf = leaf_of(ctx);
  const int64_t width = shape.row_width(), lora = shape.kv_lora_rank;
  CHECK(cache.dtype != DType::kF8E4M3 || width <= kMaxF8CacheRow);
  for_rows(ctx, int64_t(positions.size()), width, [&](int64_t t) {
    const float* from = kv_a.as<float>() + t * kv_a_row_stride;
    const float* cos_sin = rope.cos_sin + int64_t(positions[size_t(t)]) * rope.rope_dim;
    const int64_t at = int64_t(slots[size_t(t)]) * width;
    if (cache.dtype == DType::kF32) {
      float* to = static_cast<float*>(cache.base) + at;
      leaf.rms_norm(from, norm_weight.as<float>(), epsilon, lora, to, nullptr);
      leaf.rope(from + lora, cos_sin, rope.rope_dim, to + lora);
      return;
    }
    if (cache.dtype == DType::kF8E4M3) {
      float row[kMaxF8CacheRow];
      leaf.rms_norm(from, norm_weight.as<float>(), epsilon, lora, row, nullptr);
      leaf.rope(from + lora, cos_sin, rope.rope_dim, row + lora);
      uint8_t* to = static_cast<uint8_t*>(cache.base) + at;
      for (int64_t i = 0; i < width; ++i) to[i] = device::f8e4m3_from_f32(row[i]);
      return;
    }
    uint16_t* to = static_cast<uint16_t*>(cache.base) + at;
    leaf.rms_norm(from, norm_weight.as<float>(), epsilon, lora, nullptr, to);
    for (int64_t i = 0; i < rope.rope_dim; i += kPiece) {
      float rotated[kPiece];
      const int64_t count = std::min<int64_t>(kPiece, rope.rope_dim - i);
      leaf.rope(from + lora + i, cos_sin + i, count, rotated);
      leaf.narrow_row(rotated, count, to + lora + i);
    }
  });
}

void mla_rope_q(const Context& ctx, const MlaShape& shape, TensorView q, std::span<const int32_t> positions,
                const RopeTable& rope, TensorView q_out) {
  const Leaf& leaf = leaf_of(ctx);
  const int64_t width = shape.nope_dim + shape.rope_dim, row = width * shape.num_heads;
  for_rows(ctx, int64_t(positions.size()), row, [&](int64_t t) {
    const float* cos_sin = rope.cos_sin + int64_t(positions[size_t(t)]) * rope.rope_dim;
    for (int64_t h = 0; h < shape.num_heads; ++h) {
      const float* from = q.as<float>() + t * row + h * width;
      float* to = q_out.as<float>() + t * row + h * width;
      std::copy_n(from, shape.nope_dim, to);
      leaf.rope(from + shape.nope_dim, cos_sin, rope.rope_dim, to + shape.nope_dim);
    }
  });
}

size_t mla_workspace_bytes(const Context& ctx, const MlaShape& shape, int64_t max_rows, int64_t max_sequences,
                           int64_t max_context) {
  return std::max(prefill_workspace_bytes(ctx, shape, max_rows, max_sequences),
                  decode_workspace_bytes(ctx, shape, max_sequences, max_context));
}

}  // namespace tandem::kernels::cpu
