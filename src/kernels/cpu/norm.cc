#include <cstring>

#include "kernels/backends.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/rows.h"

namespace tandem::kernels::cpu {

using device::DType;
using device::TensorView;

void embed(const Context& ctx, std::span<const int32_t> ids, TensorView table, TensorView y) {
  const Leaf& leaf = leaf_of(ctx);
  const int64_t hidden = table.dim(1);
  for_rows(ctx, int64_t(ids.size()), hidden, [&](int64_t t) {
    float* to = y.as<float>() + t * hidden;
    const int64_t from = int64_t(ids[size_t(t)]) * hidden;
    if (table.dtype() == DType::kF32) {
      std::memcpy(to, table.as<float>() + from, size_t(hidden) * sizeof(float));
    } else {
      leaf.widen_row(table.as<uint16_t>() + from, hidden, to);
    }
  });
}

void rms_norm(const Context& ctx, TensorView x, int64_t x_row_stride, TensorView weight, float epsilon, TensorView y,
              TensorView y_f32) {
  const Leaf& leaf = leaf_of(ctx);
  const int64_t width = y.dim(1);
  for_rows(ctx, y.dim(0), width, [&](int64_t t) {
    float* to = y.as<float>() + t * width;
    leaf.rms_norm(x.as<float>() + t * x_row_stride, weight.as<float>(), epsilon, width, to, nullptr);
    if (y_f32.data() != nullptr) std::memcpy(y_f32.as<float>() + t * width, to, size_t(width) * sizeof(float));
  });
}

void swiglu(const Context& ctx, TensorView gate_up, TensorView y) {
  const Leaf& leaf = leaf_of(ctx);
  const int64_t width = y.dim(1);
  for_rows(ctx, y.dim(0), 4 * width, [&](int64_t t) {
    const float* gate = gate_up.as<float>() + t * 2 * width;
    leaf.swiglu(gate, gate + width, width, y.as<float>() + t * width);
  });
}

}  // namespace tandem::kernels::cpu
