#include <cmath>

#include "kernels/ref/ref.h"

namespace tandem::kernels::ref {

using device::TensorView;

void embed(const Context&, std::span<const int32_t> ids, TensorView table, TensorView y) {
  const int64_t hidden = table.dim(1);
  for (size_t t = 0; t < ids.size(); ++t) {
    for (int64_t i = 0; i < hidden; ++i) y.as<float>()[int64_t(t) * hidden + i] = load(table, ids[t] * hidden + i);
  }
}

void rms_norm(const Context&, TensorView x, int64_t x_row_stride, TensorView weight, float epsilon, TensorView y,
              TensorView y_f32) {
  const int64_t rows = y.dim(0), hidden = y.dim(1);
  for (int64_t t = 0; t < rows; ++t) {
    const float* row = x.as<float>() + t * x_row_stride;
    double sum = 0;
    for (int64_t i = 0; i < hidden; ++i) sum += double(row[i]) * row[i];
    const float factor = 1.0f / std::sqrt(float(sum / double(hidden)) + epsilon);
    for (int64_t i = 0; i < hidden; ++i) {
      const float value = row[i] * factor * weight.as<float>()[i];
      store(y, t * hidden + i, value);
      if (y_f32.data() != nullptr) y_f32.as<float>()[t * hidden + i] = value;
    }
  }
}

void swiglu(const Context&, TensorView gate_up, TensorView y) {
  const int64_t rows = y.dim(0), width = y.dim(1);
  for (int64_t t = 0; t < rows; ++t) {
    const float* gate = gate_up.as<float>() + t * 2 * width;
    for (int64_t i = 0; i < width; ++i) {
      store(y, t * width + i, gate[i] / (1.0f + std::exp(-gate[i])) * gate[width + i]);
    }
  }
}

}  // namespace tandem::kernels::ref
