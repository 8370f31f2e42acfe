#include <algorithm>
#include <cmath>

#include "kernels/ref/ref.h"

namespace tandem::kernels::ref {
namespace {

using device::DType;
using device::TensorView;

constexpr int64_t kKeyBlock = 64;

// Physical row of a position.
int64_t cache_row(const SequenceSpan& s, const PagedCache& cache, int64_t position) {
  return int64_t(s.block_table[position / cache.block_tokens]) * cache.block_tokens + position % cache.block_tokens;
}

TensorView cache_view(const MlaShape& shape, const PagedCache& cache) {
  return TensorView(cache.base, cache.dtype, {int64_t(cache.num_blocks) * cache.block_tokens, shape.row_width()});
}

// Rotates pairs (2i, 2i+1).
void rotate(const float* in, const RopeTable& rope, int32_t position, float* out) {
  const float* cos_sin = rope.cos_sin + int64_t(position) * rope.rope_dim;
  for (int32_t i = 0; i < rope.rope_dim; i += 2) {
    const float c = cos_sin[i], s = cos_sin[i + 1], a = in[i], b = in[i + 1];
    out[i] = a * c - b * s;
    out[i + 1] = a * s + b * c;
  }
}

// Running softmax of one query row and head over key blocks.
struct RowState {
  float* top;
  float* sum;
  float* acc;  // [v]

  // Adds a score and its value row.
  void add(float score, const float* value, int32_t width) const {
    if (score > *top) {
      const float shrink = std::exp(*top - score);
      *sum *= shrink;
      for (int32_t i = 0; i < width; ++i) acc[i] *= shrink;
      *top = score;
    }
    const float p = std::exp(score - *top);
    *sum += p;
    for (int32_t i = 0; i < width; ++i) acc[i] += p * value[i];
  }
};

float dot(const float* a, const float* b, int32_t count) {
  float sum = 0;
  for (int32_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

void mla_write_cache(const Context& ctx, const MlaShape& shape, TensorView kv_a, int64_t kv_a_row_stride,
                     TensorView norm_weight, float epsilon, std::span<const int32_t> positions,
                     std::span<const int32_t> slots, const RopeTable& rope, const PagedCache& cache) {
  const device::WorkspaceScope scope(*ctx.workspace);
  const TensorView rows = cache_view(shape, cache);
  const int32_t lora = shape.kv_lora_rank, width = shape.row_width();
  float* rotated = ctx.workspace->take_array<float>(size_t(shape.rope_dim));
  for (size_t t = 0; t < positions.size(); ++t) {
    float* in = kv_a.as<float>() + int64_t(t) * kv_a_row_stride;
    TensorView latent(in, DType::kF32, {1, lora});
    const size_t at = size_t(slots[t]) * size_t(width) * size_of(cache.dtype);
    ref::rms_norm(ctx, latent, lora, norm_weight, epsilon,
                  TensorView(static_cast<char*>(cache.base) + at, cache.dtype, {1, lora}), TensorView());
    rotate(in + lora, rope, positions[t], rotated);
    for (int32_t i = 0; i < shape.rope_dim; ++i) store(rows, int64_t(slots[t]) * width + lora + i, rotated[i]);
  }
}

void mla_rope_q(const Context& ctx, const MlaShape& shape, TensorView q, std::span<const int32_t> positions,
                const RopeTable& rope, TensorView q_out) {
  const device::WorkspaceScope scope(*ctx.workspace);
  const int32_t nope = shape.nope_dim, head_width = nope + shape.rope_dim;
  float* rotated = ctx.workspace->take_array<float>(size_t(shape.rope_dim));
  for (size_t t = 0; t < positions.size(); ++t) {
    for (int32_t h = 0; h < shape.num_heads; ++h) {
      const int64_t at = (int64_t(t) * shape.num_heads + h) * head_width;
      for (int32_t i = 0; i < nope; ++i) store(q_out, at + i, q.as<float>()[at + i]);
      rotate(q.as<float>() + at + nope, rope, positions[t], rotated);
      for (int32_t i = 0; i < shape.rope_dim; ++i) store(q_out, at + nope + i, rotated[i]);
    }
  }
}

void mla_prefill(const Context& ctx, const MlaShape& shape, TensorView q, const KvUpWeights& weights,
                 const PagedCache& cache, std::span<const SequenceSpan> sequences, TensorView out) {
  const device::WorkspaceScope scope(*ctx.workspace);
  const int32_t heads = shape.num_heads, nope = shape.nope_dim, v = shape.v_dim, lora = shape.kv_lora_rank;
  const int32_t qk = nope + shape.rope_dim, width = shape.row_width(), kv = nope + v;
  const TensorView rows = cache_view(shape, cache);
  const float* queries = as_f32(ctx, q);
  float* latents = ctx.workspace->take_array<float>(size_t(kKeyBlock * width));
  float* compact = ctx.workspace->take_array<float>(size_t(kKeyBlock * lora));
  float* expanded = ctx.workspace->take_array<float>(size_t(kKeyBlock * heads * kv));
  for (const SequenceSpan& s : sequences) {
    const device::WorkspaceScope sequence_scope(*ctx.workspace);
    const int64_t units = int64_t(s.num_rows) * heads, keys = s.prefix_len + s.num_rows;
    float* state = ctx.workspace->take_array<float>(size_t(units * (v + 2)));
    for (int64_t u = 0; u < units; ++u) {
      std::fill_n(state + u * (v + 2), v + 2, 0.0f);
      state[u * (v + 2)] = -INFINITY;
    }
    for (int64_t first = 0; first < keys; first += kKeyBlock) {
      const int64_t count = std::min(kKeyBlock, keys - first);
      for (int64_t j = 0; j < count; ++j) {
        const int64_t at = cache_row(s, cache, first + j) * width;
        for (int32_t i = 0; i < width; ++i) latents[j * width + i] = load(rows, at + i);
        std::copy_n(latents + j * width, lora, compact + j * lora);
      }
      ref::linear(ctx, TensorView(compact, DType::kF32, {count, lora}), weights.expand,
                  TensorView(expanded, DType::kF32, {count, heads * kv}), false);
      ctx.pool->parallel_for(units, [&](int64_t u, int) {
        const int64_t row = u / heads, h = u % heads;
        const float* query = queries + ((s.first_row + row) * heads + h) * qk;
        const RowState run{state + u * (v + 2), state + u * (v + 2) + 1, state + u * (v + 2) + 2};
        const int64_t visible = std::min(count, s.prefix_len + row + 1 - first);
        for (int64_t j = 0; j < visible; ++j) {
          const float* key = expanded + (j * heads + h) * kv;
          const float score = dot(query, key, nope) + dot(query + nope, latents + j * width + lora, shape.rope_dim);
          run.add(score * shape.softmax_scale, key + nope, v);
        }
      });
    }
    for (int64_t u = 0; u < units; ++u) {
      const float* run = state + u * (v + 2);
      for (int32_t i = 0; i < v; ++i) store(out, (int64_t(s.first_row) * heads + u) * v + i, run[2 + i] / run[1]);
    }
  }
}

void mla_decode(const Context& ctx, const MlaShape& shape, TensorView q, const KvUpWeights& weights,
                const PagedCache& cache, std::span<const SequenceSpan> sequences, TensorView out) {
  const device::WorkspaceScope scope(*ctx.workspace);
  const int32_t heads = shape.num_heads, nope = shape.nope_dim, v = shape.v_dim, lora = shape.kv_lora_rank;
  const int32_t qk = nope + shape.rope_dim, width = shape.row_width();
  const TensorView rows = cache_view(shape, cache);
  const float* queries = as_f32(ctx, q);
  float* state = ctx.workspace->take_array<float>(size_t(lora + 2));
  float* query = ctx.workspace->take_array<float>(size_t(width));
  float* latent = ctx.workspace->take_array<float>(size_t(width));
  for (const SequenceSpan& s : sequences) {
    for (int32_t h = 0; h < heads; ++h) {
      const device::WorkspaceScope head_scope(*ctx.workspace);
      float* plain = const_cast<float*>(queries) + (int64_t(s.first_row) * heads + h) * qk;
      ref::linear(ctx, TensorView(plain, DType::kF32, {1, nope}), weights.absorb_k[size_t(h)],
                  TensorView(query, DType::kF32, {1, lora}), false);
      std::copy_n(plain + nope, shape.rope_dim, query + lora);
      std::fill_n(state, lora + 2, 0.0f);
      state[0] = -INFINITY;
      for (int64_t position = 0; position <= s.prefix_len; ++position) {
        const int64_t at = cache_row(s, cache, position) * width;
        for (int32_t i = 0; i < width; ++i) latent[i] = load(rows, at + i);
        RowState{state, state + 1, state + 2}.add(dot(query, latent, width) * shape.softmax_scale, latent, lora);
      }
      for (int32_t i = 0; i < lora; ++i) state[2 + i] /= state[1];
      float* result = ctx.workspace->take_array<float>(size_t(v));
      ref::linear(ctx, TensorView(state + 2, DType::kF32, {1, lora}), weights.absorb_v[size_t(h)],
                  TensorView(result, DType::kF32, {1, v}), false);
      for (int32_t i = 0; i < v; ++i) store(out, (int64_t(s.first_row) * heads + h) * v + i, result[i]);
    }
  }
}

size_t mla_workspace_bytes(const Context& ctx, const MlaShape& shape, int64_t max_rows, int64_t, int64_t) {
  const int64_t heads = shape.num_heads, kv = shape.nope_dim + shape.v_dim, width = shape.row_width();
  const int64_t prefill = max_rows * heads * (shape.nope_dim + shape.rope_dim + shape.v_dim + 2) +
                          kKeyBlock * (width + shape.kv_lora_rank + heads * kv);
  const size_t up =
      ref::linear_workspace_bytes(ctx, kKeyBlock, heads * kv, std::max(shape.kv_lora_rank, shape.nope_dim));
  return size_t(prefill + 4 * width) * sizeof(float) + up + 2048;
}

}  // namespace tandem::kernels::ref
