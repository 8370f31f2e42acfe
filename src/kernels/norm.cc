#include "kernels/norm.h"

#include <cstring>

#include "base/check.h"
#include "kernels/backends.h"
#include "kernels/work.h"

namespace tandem::kernels {

using device::DType;
using device::TensorView;

void embed(const Context& ctx, std::span<const int32_t> ids, TensorView table, TensorView y) {
  CHECK(table.rank() == 2 && y.rank() == 2 && y.dim(0) == int64_t(ids.size()) && y.dim(1) == table.dim(1));
  CHECK(y.dtype() == DType::kF32 && (table.dtype() == DType::kBF16 || table.dtype() == DType::kF32));
  if (!is_cuda(ctx.backend)) {
    for (const int32_t id : ids) CHECK(id >= 0 && id < table.dim(0));
  }
  profile::OpSpan span(ctx.spans, "embed");
  if (span) note_rows(span, y, 0, 2 * bytes_of(y));
  switch (ctx.backend) {
    case Backend::kRef: return ref::embed(ctx, ids, table, y);
    case Backend::kCpu: return cpu::embed(ctx, ids, table, y);
    case Backend::kCuda:
    case Backend::kCudaF32: return cuda::embed(ctx, ids, table, y);
  }
}

void rms_norm(const Context& ctx, TensorView x, int64_t x_row_stride, TensorView weight, float epsilon, TensorView y,
              TensorView y_f32) {
  CHECK(x.dtype() == DType::kF32 && weight.dtype() == DType::kF32 && y.dtype() == ctx.act_dtype());
  CHECK(y.rank() == 2 && weight.num_elements() == y.dim(1) && x_row_stride >= y.dim(1));
  CHECK(y_f32.data() == nullptr || (y_f32.dtype() == DType::kF32 && y_f32.num_elements() == y.num_elements()));
  profile::OpSpan span(ctx.spans, "rms_norm");
  if (span) note_rows(span, y, 4, 2 * bytes_of(y) + bytes_of(weight, y_f32));
  switch (ctx.backend) {
    case Backend::kRef: return ref::rms_norm(ctx, x, x_row_stride, weight, epsilon, y, y_f32);
    case Backend::kCpu: return cpu::rms_norm(ctx, x, x_row_stride, weight, epsilon, y, y_f32);
    case Backend::kCuda:
    case Backend::kCudaF32: return cuda::rms_norm(ctx, x, x_row_stride, weight, epsilon, y, y_f32);
  }
}

void gather_rows(const Context& ctx, TensorView x, std::span<const int32_t> rows, TensorView y) {
  CHECK(x.rank() == 2 && y.rank() == 2 && x.dim(1) == y.dim(1) && y.dim(0) == int64_t(rows.size()));
  CHECK(x.dtype() == DType::kF32 && y.dtype() == DType::kF32);
  if (is_cuda(ctx.backend)) return cuda::gather_rows(ctx, x, rows, y);
  const size_t width = size_t(x.dim(1));
  for (size_t i = 0; i < rows.size(); ++i) {
    CHECK(rows[i] >= 0 && rows[i] < x.dim(0));
    std::memcpy(y.as<float>() + i * width, x.as<float>() + size_t(rows[i]) * width, width * sizeof(float));
  }
}

void swiglu(const Context& ctx, TensorView gate_up, TensorView y) {
  CHECK(gate_up.dtype() == DType::kF32 && y.dtype() == ctx.act_dtype());
  CHECK(gate_up.rank() == 2 && y.rank() == 2 && gate_up.dim(0) == y.dim(0) && gate_up.dim(1) == 2 * y.dim(1));
  profile::OpSpan span(ctx.spans, "swiglu");
  if (span) note_rows(span, y, 5, bytes_of(gate_up, y));
  switch (ctx.backend) {
    case Backend::kRef: return ref::swiglu(ctx, gate_up, y);
    case Backend::kCpu: return cpu::swiglu(ctx, gate_up, y);
    case Backend::kCuda:
    case Backend::kCudaF32: return cuda::swiglu(ctx, gate_up, y);
  }
}

}  // namespace tandem::kernels
