// Rows of activations in FP8, as they travel between ranks: groups of 128 columns with a scale each, by the rule of the
// GPU's FP8 products (cuda/quantise.cuh). Every instruction set gives the same bits. Pure; any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tandem::kernels {

inline constexpr int64_t kFp8Group = 128;

// A row in memory and on the wire: E4M3 values, an f32 scale for each group, unused bytes up to a multiple of 16.
constexpr int64_t fp8_num_groups(int64_t width) { return (width + kFp8Group - 1) / kFp8Group; }
constexpr int64_t fp8_scales_at(int64_t width) { return (width + 3) / 4 * 4; }
constexpr int64_t fp8_row_bytes(int64_t width) {
  return (fp8_scales_at(width) + fp8_num_groups(width) * int64_t(sizeof(float)) + 15) / 16 * 16;
}

// scale = max(largest magnitude in the group, 1e-10) / 448, value = E4M3(x * (1 / scale)) to nearest even. A number
// that is not finite becomes NaN and has no part in the scale, so scales are finite and positive whatever x holds.
//   x [width], row [fp8_row_bytes(width)] aligned to 4; all bytes are written.  Oracle: ref::quantise_row.
void quantise_row(const float* x, int64_t width, std::byte* row);
// x = value * scale, rounded to f32. Within max(|x| / 16, scale / 1024) of what was quantised, and f32's rounding.
void dequantise_row(const std::byte* row, int64_t width, float* x);
// The first group whose scale is not finite and positive; -1: none.
int64_t find_bad_scale(const std::byte* row, int64_t width);

namespace ref {
void quantise_row(const float* x, int64_t width, std::byte* row);
void dequantise_row(const std::byte* row, int64_t width, float* x);
}  // namespace ref

}  // namespace tandem::kernels
