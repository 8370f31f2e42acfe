// Element types of tensors and checkpoints.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tandem::device {

enum class DType : uint8_t { kF32, kBF16, kF8E4M3, kI32 };

constexpr size_t size_of(DType type) {
  switch (type) {
    case DType::kF32: return 4;
    case DType::kBF16: return 2;
    case DType::kF8E4M3: return 1;
    case DType::kI32: return 4;
  }
  return 0;
}
const char* to_string(DType type);

// bf16 <-> f32, round to nearest even; NaN stays NaN.
uint16_t bf16_from_f32(float value);
inline float f32_from_bf16(uint16_t bits) { return __builtin_bit_cast(float, uint32_t(bits) << 16); }
// FP8 E4M3 "fn": no infinities, 0x7f and 0xff are NaN, largest 448.
float f32_from_f8e4m3(uint8_t bits);
uint8_t f8e4m3_from_f32(float value);  // saturates to +-448, round to nearest even

}  // namespace tandem::device
