#include "kernels/fp8_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "device/dtype.h"

namespace tandem::kernels::ref {

void quantise_row(const float* x, int64_t width, std::byte* row) {
  std::memset(row, 0, size_t(fp8_row_bytes(width)));
  for (int64_t begin = 0; begin < width; begin += kFp8Group) {
    const int64_t end = std::min(width, begin + kFp8Group);
    float top = 1e-10f;
    for (int64_t i = begin; i < end; ++i) {
      if (std::isfinite(x[i])) top = std::max(top, std::abs(x[i]));
    }
    const float scale = top / 448.0f, inverse = 1.0f / scale;
    std::memcpy(row + fp8_scales_at(width) + begin / kFp8Group * int64_t(sizeof(scale)), &scale, sizeof(scale));
    for (int64_t i = begin; i < end; ++i) {
      const float value = std::isfinite(x[i]) ? x[i] * inverse : std::copysign(NAN, x[i]);
      row[i] = std::byte(device::f8e4m3_from_f32(value));
    }
  }
}

void dequantise_row(const std::byte* row, int64_t width, float* x) {
  for (int64_t i = 0; i < width; ++i) {
    float scale = 0;
    std::memcpy(&scale, row + fp8_scales_at(width) + i / kFp8Group * int64_t(sizeof(scale)), sizeof(scale));
    x[i] = device::f32_from_f8e4m3(uint8_t(row[i])) * scale;
  }
}

}  // namespace tandem::kernels::ref
