// The experts' MLP over rows sorted by slot: two grouped products with SwiGLU between them.
#include "kernels/moe.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/gate.h"
#include "kernels/cuda/plain_gemm.h"
#include "kernels/cuda/tensor_gemm.h"

namespace tandem::kernels::cuda {
namespace {

using device::DType;
using device::TensorView;

// The experts of a layer's slots: each where it lies, or, with `places`, as a table in the GPU's memory says.
struct SlotExperts {
  std::span<const ExpertWeights* const> of_slot;
  const GpuPlaces* places = nullptr;

  const ExpertWeights& form() const { return places != nullptr ? *places->first : *of_slot[0]; }
  int32_t num_slots() const { return places != nullptr ? places->num_slots : int32_t(of_slot.size()); }
  int64_t place_bytes() const { return int64_t(form().gate_up.bytes() + form().down.bytes()); }
};

const std::byte* values_of(const ExpertWeights& expert, PackedWeight ExpertWeights::*part) {
  return static_cast<const std::byte*>((expert.*part).impl()->values.data());
}

SlotWeights slot_weights(const SlotExperts& experts, PackedWeight ExpertWeights::*part) {
  SlotWeights slots{};
  const PackedWeight::Impl& form = *(experts.form().*part).impl();
  slots.scale_offset =
      static_cast<const std::byte*>(form.scales.data()) - static_cast<const std::byte*>(form.values.data());
  if (experts.places != nullptr) {
    slots.values[0] = values_of(experts.form(), part);
    slots.place_of_slot = experts.places->of_slot;
    slots.place_bytes = experts.place_bytes();
    return slots;
  }
  for (size_t s = 0; s < experts.of_slot.size(); ++s) slots.values[s] = values_of(*experts.of_slot[s], part);
  return slots;
}

// Where each slot's expert lies among the rank's equal places.
struct SlotPlaces {
  const std::byte* first = nullptr;
  int64_t place_bytes = 0;
  int32_t num_places = 1;
  int32_t of_slot[kMaxGroups] = {};
  const int32_t* gpu_of_slot = nullptr;  // not null: instead of of_slot
};

SlotPlaces find_places(const SlotExperts& experts, PackedWeight ExpertWeights::*part) {
  SlotPlaces places;
  places.place_bytes = experts.place_bytes();
  places.first = values_of(experts.form(), part);
  if (experts.places != nullptr) {
    places.num_places = experts.places->num_places;
    places.gpu_of_slot = experts.places->of_slot;
    return places;
  }
  for (const ExpertWeights* e : experts.of_slot) places.first = std::min(places.first, values_of(*e, part));
  for (size_t s = 0; s < experts.of_slot.size(); ++s) {
    const int64_t offset = values_of(*experts.of_slot[s], part) - places.first;
    CHECK(offset % places.place_bytes == 0);
    places.of_slot[s] = int32_t(offset / places.place_bytes);
    places.num_places = std::max(places.num_places, places.of_slot[s] + 1);
  }
  return places;
}

// One of the two products of all slots. y [rows, n] f32.
void tensor_product(const Context& ctx, const Quantised& x, const SlotSort& sort, const SlotExperts& experts,
                    PackedWeight ExpertWeights::*part, TensorView y) {
  const PackedWeight::Impl& w = *(experts.form().*part).impl();
  const SlotPlaces places = find_places(experts, part);
  TensorGemm gemm;
  gemm.name = part == &ExpertWeights::gate_up ? "experts gate_up" : "experts down";
  gemm.dtype = w.dtype;
  gemm.x = x.values;
  gemm.x_scales = x.scales;
  gemm.x_scale_stride = x.scale_stride;
  gemm.rows = y.dim(0);
  gemm.n = gemm.y_row_stride = w.n;
  gemm.k = gemm.x_row_stride = w.k;
  gemm.w = places.first;
  gemm.place_bytes = places.place_bytes;
  gemm.scale_offset = static_cast<const std::byte*>(w.scales.data()) - static_cast<const std::byte*>(w.values.data());
  gemm.num_places = places.num_places;
  gemm.num_groups = experts.num_slots();
  gemm.place_of_group = places.of_slot;
  gemm.gpu_place_of_group = places.gpu_of_slot;
  gemm.slot_begin = sort.slot_begin.data();
  gemm.y = y.data();
  run_tensor_gemm(ctx, gemm);
}

void tensor_mlp(const Context& ctx, TensorView x, const SlotSort& sort, const SlotExperts& experts, int64_t width,
                TensorView y) {
  const device::WorkspaceScope scope(*ctx.workspace);
  const int64_t rows = int64_t(sort.row_token.size()), hidden = y.dim(1);
  const Quantised sorted = Quantised::take(*ctx.workspace, rows, hidden);
  const TensorView wide(ctx.workspace->take_array<float>(size_t(rows * 2 * width)), DType::kF32, {rows, 2 * width});
  const Quantised inner = Quantised::take(*ctx.workspace, rows, width);
  if (x.dtype() == DType::kF8E4M3) {
    gather_quantised(ctx, x, sort.row_token.data(), hidden, rows, sorted);
  } else {
    quantise(ctx, x, sort.row_token.data(), rows, sorted);
  }
  tensor_product(ctx, sorted, sort, experts, &ExpertWeights::gate_up, wide);
  swiglu_quantise(ctx, wide, inner);
  tensor_product(ctx, inner, sort, experts, &ExpertWeights::down, y);
}

bool runs_on_tensor_cores(const Context& ctx, const ExpertWeights& form) {
  const PackedWeight::Impl &up = *form.gate_up.impl(), &down = *form.down.impl();
  return ctx.backend == Backend::kCuda && up.dtype == DType::kF8E4M3 && down.dtype == DType::kF8E4M3 &&
         can_run_tensor_gemm(up.dtype, up.n, up.k) && can_run_tensor_gemm(down.dtype, down.n, down.k);
}

void run_mlp(const Context& ctx, TensorView x, const SlotSort& sort, const SlotExperts& experts, int32_t intermediate,
             TensorView y) {
  CHECK(experts.num_slots() > 0 && experts.num_slots() <= kMaxSlots);
  if (runs_on_tensor_cores(ctx, experts.form())) return tensor_mlp(ctx, x, sort, experts, intermediate, y);
  CHECK(x.dtype() != DType::kF8E4M3);
  const device::WorkspaceScope scope(*ctx.workspace);
  const int64_t rows = int64_t(sort.row_token.size()), width = intermediate;
  const DType act = ctx.act_dtype();
  const TensorView wide(ctx.workspace->take_array<float>(size_t(rows * 2 * width)), DType::kF32, {rows, 2 * width});
  const TensorView inner(ctx.workspace->take(size_t(rows * width) * size_of(act)), act, {rows, width});

  PlainGemm up;
  set_weight(up, *experts.form().gate_up.impl());
  up.x = x.data();
  up.x_row_stride = x.dim(1);
  up.x_row_of = sort.row_token.data();
  up.x_is_bf16 = x.dtype() == DType::kBF16;
  up.y = wide.data();
  up.y_row_stride = 2 * width;
  up.slot_begin = sort.slot_begin.data();
  up.max_rows = rows;
  up.batch = experts.num_slots();
  run_plain_gemm(ctx, up, slot_weights(experts, &ExpertWeights::gate_up));
  cuda::swiglu(ctx, wide, inner);

  PlainGemm down;
  set_weight(down, *experts.form().down.impl());
  down.x = inner.data();
  down.x_row_stride = width;
  down.x_is_bf16 = act == DType::kBF16;
  down.y = y.data();
  down.y_row_stride = x.dim(1);
  down.slot_begin = sort.slot_begin.data();
  down.max_rows = rows;
  down.batch = experts.num_slots();
  run_plain_gemm(ctx, down, slot_weights(experts, &ExpertWeights::down));
}

}  // namespace

void grouped_mlp(const Context& ctx, TensorView x, const SlotSort& sort, std::span<const ExpertWeights* const> experts,
                 int32_t intermediate, TensorView y) {
  run_mlp(ctx, x, sort, {experts}, intermediate, y);
}
void grouped_mlp(const Context& ctx, TensorView x, const SlotSort& sort, const GpuPlaces& places, int32_t intermediate,
                 TensorView y) {
  run_mlp(ctx, x, sort, {{}, &places}, intermediate, y);
}

size_t moe_workspace_bytes(const Context& ctx, int64_t max_rows, int32_t top_k, int64_t hidden, int64_t intermediate) {
  const int64_t rows = max_rows * top_k;
  const size_t plain = size_t(rows * intermediate) * (2 * sizeof(float) + size_of(ctx.act_dtype())) + 256;
  const size_t tensor = Quantised::bytes(rows, hidden) + Quantised::bytes(rows, intermediate) +
                        size_t(rows * 2 * intermediate) * sizeof(float) + 256;
  return std::max({plain, ctx.backend == Backend::kCuda ? tensor : 0, gate_workspace_bytes(max_rows)});
}

}  // namespace tandem::kernels::cuda
