#include "kernels/cpu/leaf.h"

namespace tandem::kernels::cpu {
namespace {

// bf16 bits of an FP8 E4M3 magnitude. Every finite value is a normal bf16: AVX-512-BF16 flushes denormals.
constexpr int bf16_of_f8(int code) {
  if (code == 0) return 0;
  if (code == 0x7f) return 0x7fc0;  // NaN
  int exponent = code >> 3, mantissa = code & 7;
  if (exponent == 0) {  // mantissa * 2^-9, normalised
    exponent = 1;
    while ((mantissa & 8) == 0) {
      mantissa <<= 1;
      --exponent;
    }
    mantissa &= 7;
  }
  return (exponent + 120) << 7 | mantissa << 4;
}

constexpr F8Table make_table() {
  F8Table table{};
  for (int code = 0; code < 128; ++code) {
    table.low[code] = uint8_t(bf16_of_f8(code) & 0xff);
    table.high[code] = uint8_t(bf16_of_f8(code) >> 8);
  }
  return table;
}

}  // namespace

constinit const F8Table kF8Table = make_table();

}  // namespace tandem::kernels::cpu
