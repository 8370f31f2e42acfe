#include "kernels/fp8_rows.h"

#include <cmath>
#include <cstring>

#include "kernels/context.h"
#include "kernels/cpu/leaf.h"

namespace tandem::kernels {
namespace {

// Null: this CPU has none of the instruction sets.
const cpu::Leaf* leaf() {
  static const cpu::Leaf* const best = cpu_supports(Isa::kAvx512) ? &cpu::kLeafAvx512
                                       : cpu_supports(Isa::kAvx2) ? &cpu::kLeafAvx2
                                                                  : nullptr;
  return best;
}

}  // namespace

void quantise_row(const float* x, int64_t width, std::byte* row) {
  if (leaf() == nullptr) return ref::quantise_row(x, width, row);
  const int64_t scales = fp8_scales_at(width), end = scales + fp8_num_groups(width) * int64_t(sizeof(float));
  std::memset(row + width, 0, size_t(scales - width));
  std::memset(row + end, 0, size_t(fp8_row_bytes(width) - end));
  leaf()->quantise_row(x, width, reinterpret_cast<uint8_t*>(row), reinterpret_cast<float*>(row + scales));
}

void dequantise_row(const std::byte* row, int64_t width, float* x) {
  if (leaf() == nullptr) return ref::dequantise_row(row, width, x);
  leaf()->dequantise_row(reinterpret_cast<const uint8_t*>(row),
                         reinterpret_cast<const float*>(row + fp8_scales_at(width)), width, x);
}

int64_t find_bad_scale(const std::byte* row, int64_t width) {
  for (int64_t group = 0; group < fp8_num_groups(width); ++group) {
    float scale = 0;
    std::memcpy(&scale, row + fp8_scales_at(width) + group * int64_t(sizeof(scale)), sizeof(scale));
    if (!std::isfinite(scale) || scale <= 0) return group;
  }
  return -1;
}

}  // namespace tandem::kernels
