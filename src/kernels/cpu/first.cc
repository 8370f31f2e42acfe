// Temporary: the oracle serves.
#include "kernels/backends.h"

namespace tandem::kernels::cpu {

void pack_into(PackedWeight::Impl& impl, const std::vector<RawWeight>& stacked) {
  return ref::pack_into(impl, stacked);
}
void linear(const Context& ctx, device::TensorView x, const PackedWeight& w, device::TensorView y, bool add) {
  return ref::linear(ctx, x, w, y, add);
}
size_t linear_workspace_bytes(const Context& ctx, int64_t max_rows, int64_t n, int64_t k) {
  return ref::linear_workspace_bytes(ctx, max_rows, n, k);
}
void embed(const Context& ctx, std::span<const int32_t> ids, device::TensorView table, device::TensorView y) {
  return ref::embed(ctx, ids, table, y);
}
void rms_norm(const Context& ctx, device::TensorView x, int64_t x_row_stride, device::TensorView weight, float epsilon,
              device::TensorView y, device::TensorView y_f32) {
  return ref::rms_norm(ctx, x, x_row_stride, weight, epsilon, y, y_f32);
}
void swiglu(const Context& ctx, device::TensorView gate_up, device::TensorView y) {
  return ref::swiglu(ctx, gate_up, y);
}
void mla_write_cache(const Context& ctx, const MlaShape& shape, device::TensorView kv_a, int64_t kv_a_row_stride,
                     device::TensorView norm_weight, float epsilon, std::span<const int32_t> positions,
                     std::span<const int32_t> slots, const RopeTable& rope, const PagedCache& cache) {
  return ref::mla_write_cache(ctx, shape, kv_a, kv_a_row_stride, norm_weight, epsilon, positions, slots, rope, cache);
}
void mla_rope_q(const Context& ctx, const MlaShape& shape, device::TensorView q, std::span<const int32_t> positions,
                const RopeTable& rope, device::TensorView q_out) {
  return ref::mla_rope_q(ctx, shape, q, positions, rope, q_out);
}
void mla_prefill(const Context& ctx, const MlaShape& shape, device::TensorView q, const KvUpWeights& weights,
                 const PagedCache& cache, std::span<const SequenceSpan> sequences, device::TensorView out) {
  return ref::mla_prefill(ctx, shape, q, weights, cache, sequences, out);
}
void mla_decode(const Context& ctx, const MlaShape& shape, device::TensorView q, const KvUpWeights& weights,
                const PagedCache& cache, std::span<const SequenceSpan> sequences, device::TensorView out) {
  return ref::mla_decode(ctx, shape, q, weights, cache, sequences, out);
}
size_t mla_workspace_bytes(const Context& ctx, const MlaShape& shape, int64_t max_rows, int64_t max_sequences,
                           int64_t max_context) {
  return ref::mla_workspace_bytes(ctx, shape, max_rows, max_sequences, max_context);
}
void gate(const Context& ctx, const GateConfig& config, device::TensorView x, device::TensorView weight,
          device::TensorView bias, device::TensorView ids, device::TensorView weights) {
  return ref::gate(ctx, config, x, weight, bias, ids, weights);
}
void grouped_mlp(const Context& ctx, device::TensorView x, const SlotSort& sort,
                 std::span<const ExpertWeights* const> experts, int32_t intermediate, device::TensorView y) {
  return ref::grouped_mlp(ctx, x, sort, experts, intermediate, y);
}
void combine(const Context& ctx, device::TensorView y, const SlotSort& sort, device::TensorView weights,
             device::TensorView out) {
  return ref::combine(ctx, y, sort, weights, out);
}
size_t moe_workspace_bytes(const Context& ctx, int64_t max_rows, int32_t top_k, int64_t hidden, int64_t intermediate) {
  return ref::moe_workspace_bytes(ctx, max_rows, top_k, hidden, intermediate);
}
void sample(const Context& ctx, device::TensorView logits, std::span<const SampleParams> params,
            std::span<SampleResult> results) {
  return ref::sample(ctx, logits, params, results);
}

}  // namespace tandem::kernels::cpu
