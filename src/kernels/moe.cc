#include "kernels/moe.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/backends.h"
#include "kernels/fp8_rows.h"
#include "kernels/work.h"

namespace tandem::kernels {

using device::DType;
using device::TensorView;

void gate(const Context& ctx, const GateConfig& config, TensorView x, TensorView weight, TensorView bias,
          TensorView ids, TensorView weights) {
  CHECK(config.num_experts > 0 && config.top_k > 0 && config.top_k <= config.num_experts);
  CHECK(config.num_groups > 0 && config.num_experts % config.num_groups == 0);
  CHECK(config.top_k_groups > 0 && config.top_k_groups <= config.num_groups);
  CHECK(config.method == GateMethod::kGreedy ||
        config.top_k <= config.num_experts / config.num_groups * config.top_k_groups);
  CHECK(x.dtype() == DType::kF32 && weight.dtype() == DType::kF32 && weight.rank() == 2 && x.rank() == 2);
  CHECK(weight.dim(0) == config.num_experts && weight.dim(1) == x.dim(1));
  CHECK(bias.data() == nullptr || (bias.dtype() == DType::kF32 && bias.num_elements() == config.num_experts));
  CHECK(ids.dtype() == DType::kI32 && ids.num_elements() == x.dim(0) * config.top_k);
  CHECK(weights.dtype() == DType::kF32 && weights.num_elements() == x.dim(0) * config.top_k);
  profile::OpSpan span(ctx.spans, "gate");
  if (span)
    span.work({x.dim(0), weight.dim(0), weight.dim(1)}, 2.0 * double(x.dim(0)) * double(weight.num_elements()),
              bytes_of(x, weight));
  switch (ctx.backend) {
    case Backend::kRef: return ref::gate(ctx, config, x, weight, bias, ids, weights);
    case Backend::kCpu: return cpu::gate(ctx, config, x, weight, bias, ids, weights);
    case Backend::kCuda:
    case Backend::kCudaF32: return cuda::gate(ctx, config, x, weight, bias, ids, weights);
  }
}

// What cuda/moe.cc runs on tensor cores. gate_up keeps its scale blocks where `up` begins with one (gemm.cc).
bool takes_fp8_rows(Backend backend, int64_t hidden, int64_t intermediate) {
  return backend == Backend::kCuda && hidden % 16 == 0 && intermediate % kFp8Group == 0;
}

namespace {

void check_mlp(const Context& ctx, const TensorView& x, const SlotSort& sort, int32_t intermediate,
               const TensorView& y) {
  CHECK(ctx.pool != nullptr && ctx.workspace != nullptr);
  CHECK(x.rank() == 2 && y.rank() == 2 && intermediate > 0);
  const bool fp8 = x.dtype() == DType::kF8E4M3;
  CHECK(fp8 ? takes_fp8_rows(ctx.backend, y.dim(1), intermediate) : x.dtype() == ctx.act_dtype());
  CHECK(x.dim(1) == (fp8 ? fp8_row_bytes(y.dim(1)) : y.dim(1)));
  CHECK(y.dtype() == DType::kF32 && y.dim(0) == int64_t(sort.row_token.size()));
}

}  // namespace

void grouped_mlp(const Context& ctx, TensorView x, const SlotSort& sort, std::span<const ExpertWeights* const> experts,
                 int32_t intermediate, TensorView y) {
  check_mlp(ctx, x, sort, intermediate, y);
  CHECK(experts.size() + 1 == sort.slot_begin.size());
  if (is_cuda(ctx.backend)) {
    const profile::OpSpan span(ctx.spans, "grouped_mlp");  // which slots have rows is known on the GPU only
    return cuda::grouped_mlp(ctx, x, sort, experts, intermediate, y);
  }
  for (size_t slot = 0; slot < experts.size(); ++slot) {
    if (sort.slot_begin[slot] == sort.slot_begin[slot + 1]) continue;
    CHECK(experts[slot] != nullptr);
    CHECK(experts[slot]->gate_up.rows() == 2 * int64_t(intermediate) && experts[slot]->gate_up.cols() == x.dim(1));
    CHECK(experts[slot]->down.rows() == x.dim(1) && experts[slot]->down.cols() == intermediate);
  }
  profile::OpSpan span(ctx.spans, "grouped_mlp");
  if (span) {
    double bytes = bytes_of(x, y);
    for (size_t slot = 0; slot < experts.size(); ++slot) {
      if (sort.slot_begin[slot] == sort.slot_begin[slot + 1]) continue;
      bytes += double(experts[slot]->gate_up.bytes() + experts[slot]->down.bytes());
    }
    span.work({y.dim(0), 2 * int64_t(intermediate), x.dim(1)},
              6.0 * double(y.dim(0)) * double(intermediate) * double(x.dim(1)), bytes);
  }
  switch (ctx.backend) {
    case Backend::kRef: return ref::grouped_mlp(ctx, x, sort, experts, intermediate, y);
    case Backend::kCpu: return cpu::grouped_mlp(ctx, x, sort, experts, intermediate, y);
    case Backend::kCuda:
    case Backend::kCudaF32: break;  // above
  }
}

void combine(const Context& ctx, std::span<const float* const> rows, TensorView weights, TensorView out) {
  CHECK(weights.dtype() == DType::kF32 && out.dtype() == DType::kF32);
  CHECK(weights.rank() == 2 && out.rank() == 2 && weights.dim(0) == out.dim(0));
  CHECK(int64_t(rows.size()) == weights.num_elements());
  profile::OpSpan span(ctx.spans, "combine");
  if (span) note_rows(span, out, 2 * double(weights.dim(1)), bytes_of(out) * double(2 + weights.dim(1)));
  switch (ctx.backend) {
    case Backend::kRef: return ref::combine(ctx, rows, weights, out);
    case Backend::kCpu: return cpu::combine(ctx, rows, weights, out);
    case Backend::kCuda:
    case Backend::kCudaF32: return cuda::combine(ctx, rows, weights, out);
  }
}

void grouped_mlp(const Context& ctx, TensorView x, const SlotSort& sort, const GpuPlaces& places, int32_t intermediate,
                 TensorView y) {
  CHECK(is_cuda(ctx.backend));
  check_mlp(ctx, x, sort, intermediate, y);
  CHECK(places.first != nullptr && places.of_slot != nullptr && places.num_slots > 0);
  CHECK(places.num_places >= places.num_slots && size_t(places.num_slots) + 1 == sort.slot_begin.size());
  const profile::OpSpan span(ctx.spans, "grouped_mlp");  // which slots have rows is known on the GPU only
  cuda::grouped_mlp(ctx, x, sort, places, intermediate, y);
}

void choose_slots(const Context& ctx, const SlotChoice& choice, TensorView ids, int32_t* counts) {
  CHECK(is_cuda(ctx.backend));
  CHECK(ids.rank() == 2 && ids.dtype() == DType::kI32);
  CHECK(choice.begin != nullptr && choice.slot != nullptr && choice.upto != nullptr);
  CHECK(choice.values != nullptr);
  cuda::choose_slots(ctx, choice, ids, counts);
}

void sort_by_slot(const Context& ctx, TensorView slots, int32_t num_slots, const GpuSlotSort& sort) {
  CHECK(is_cuda(ctx.backend));
  CHECK(slots.rank() == 2 && slots.dtype() == DType::kI32 && num_slots > 0);
  cuda::sort_by_slot(ctx, slots, num_slots, sort);
}

size_t moe_workspace_bytes(const Context& ctx, int64_t max_rows, int32_t top_k, int32_t num_slots, int64_t hidden,
                           int64_t intermediate) {
  // Scores of a few rows per thread; experts may outnumber the slots of one rank.
  const size_t scores = 8 * std::max<size_t>(size_t(num_slots), 1024) * sizeof(float) * size_t(ctx.pool->num_threads());
  switch (ctx.backend) {
    case Backend::kRef: return scores + ref::moe_workspace_bytes(ctx, max_rows, top_k, hidden, intermediate);
    case Backend::kCpu: return scores + cpu::moe_workspace_bytes(ctx, max_rows, top_k, hidden, intermediate);
    case Backend::kCuda:
    case Backend::kCudaF32: return scores + cuda::moe_workspace_bytes(ctx, max_rows, top_k, hidden, intermediate);
  }
  return 0;
}

}  // namespace tandem::kernels
