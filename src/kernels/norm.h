// Norms, embedding and elementwise ops between GEMMs. Allocate nothing.
#pragma once

#include <span>

#include "kernels/context.h"

namespace tandem::kernels {

// y[t] = table[ids[t]] as f32.   table [vocab, hidden] bf16 or f32, y [T, hidden] f32. CHECKs ids in range.
void embed(const Context& ctx, std::span<const int32_t> ids, device::TensorView table, device::TensorView y);

// y[t] = x[t] / sqrt(mean(x[t]^2) + epsilon) * weight, accumulated in f32.
//   x [T, H] f32 (row_stride elements apart: x may be a column slice), weight [H] f32,
//   y [T, H] ctx.act_dtype(); y_f32 [T, H] f32 or empty (unrounded copy, for the router).
// Source: Zhang & Sennrich 2019. Oracle: Backend::kRef.
void rms_norm(const Context& ctx, device::TensorView x, int64_t x_row_stride, device::TensorView weight, float epsilon,
              device::TensorView y, device::TensorView y_f32);

// y[i] = x[rows[i]].   x [T, H] f32, y [rows, H] f32.
void gather_rows(const Context& ctx, device::TensorView x, std::span<const int32_t> rows, device::TensorView y);

// y[t, i] = silu(gate_up[t, i]) * gate_up[t, I + i].   gate_up [T, 2I] f32, y [T, I] ctx.act_dtype().
void swiglu(const Context& ctx, device::TensorView gate_up, device::TensorView y);

}  // namespace tandem::kernels
