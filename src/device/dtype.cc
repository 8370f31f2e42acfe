#include "device/dtype.h"

#include <cmath>

namespace tandem::device {

const char* to_string(DType type) {
  switch (type) {
    case DType::kF32: return "f32";
    case DType::kBF16: return "bf16";
    case DType::kF8E4M3: return "f8_e4m3";
    case DType::kI32: return "i32";
  }
  return "unknown";
}

uint16_t bf16_from_f32(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40u);  // keep NaN a quiet NaN
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float f32_from_f8e4m3(uint8_t bits) {
  const float sign = (bits & 0x80u) != 0 ? -1.0f : 1.0f;
  const int exponent = (bits >> 3) & 0xf;
  const int mantissa = bits & 0x7;
  if ((bits & 0x7fu) == 0x7fu) return __builtin_copysignf(__builtin_nanf(""), sign);
  if (exponent == 0) return sign * std::ldexp(float(mantissa), -9);
  return sign * std::ldexp(float(8 + mantissa), exponent - 10);
}

uint8_t f8e4m3_from_f32(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint8_t sign = uint8_t((bits >> 24) & 0x80u);
  if (std::isnan(value)) return uint8_t(sign | 0x7fu);
  const float magnitude = std::fabs(value);
  if (magnitude >= 448.0f) return uint8_t(sign | 0x7eu);
  if (magnitude < 0.015625f) {  // below 2^-6: multiples of 2^-9; 8 of them is the smallest normal number
    return uint8_t(sign | uint8_t(std::nearbyint(std::ldexp(magnitude, 9))));
  }
  uint32_t rounded = bits & 0x7fffffffu;
  rounded += 0x7ffffu + ((rounded >> 20) & 1u);  // to nearest even at 3 bits of mantissa
  const uint32_t code = (rounded >> 20) - ((127u - 7u) << 3);
  return uint8_t(sign | uint8_t(code > 0x7eu ? 0x7eu : code));
}

}  // namespace tandem::device
