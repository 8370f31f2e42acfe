#include "device/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>

namespace tandem::device {
namespace {

// The format's own words (OCP FP8, E4M3): sign, 4 bits of exponent with bias 7, 3 of mantissa, no infinities.
float f8_by_definition(int code) {
  const double sign = (code & 0x80) != 0 ? -1 : 1;
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return NAN;
  return float(sign *
               (exponent == 0 ? mantissa / 8.0 * std::pow(2, -6) : (1 + mantissa / 8.0) * std::pow(2, exponent - 7)));
}

TEST(DType, All256Fp8CodesMeanWhatTheFormatSays) {
  for (int code = 0; code < 256; ++code) {
    const float got = f32_from_f8e4m3(uint8_t(code)), want = f8_by_definition(code);
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(got));
    } else {
      EXPECT_EQ(got, want) << code;
      EXPECT_EQ(std::signbit(got), std::signbit(want)) << code;
    }
  }
}

TEST(DType, Fp8CodesSurviveARoundTrip) {
  for (int code = 0; code < 256; ++code) {
    EXPECT_EQ(f8e4m3_from_f32(f32_from_f8e4m3(uint8_t(code))), code);
  }
}

TEST(DType, Fp8RoundsToTheNearestAndTiesToEven) {
  for (int code = 0; code < 0x7e; ++code) {
    const float low = f8_by_definition(code), high = f8_by_definition(code + 1), middle = (low + high) / 2;
    EXPECT_EQ(f8e4m3_from_f32(std::nextafter(middle, 0.0f)), code);
    EXPECT_EQ(f8e4m3_from_f32(std::nextafter(middle, 1e9f)), code + 1);
    EXPECT_EQ(f8e4m3_from_f32(middle), code % 2 == 0 ? code : code + 1) << code;
    EXPECT_EQ(f8e4m3_from_f32(-middle), (code % 2 == 0 ? code : code + 1) | 0x80);
  }
}

TEST(DType, Fp8SaturatesAndKeepsNan) {
  EXPECT_EQ(f8e4m3_from_f32(1e9f), 0x7e);
  EXPECT_EQ(f8e4m3_from_f32(-INFINITY), 0xfe);
  EXPECT_EQ(f8e4m3_from_f32(460.0f), 0x7e);
  EXPECT_EQ(f8e4m3_from_f32(NAN) & 0x7f, 0x7f);
}

TEST(DType, Bf16RoundsToNearestEvenAndKeepsNanAndInfinity) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = f32_from_bf16(uint16_t(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(f32_from_bf16(bf16_from_f32(value))));
      continue;
    }
    ASSERT_EQ(bf16_from_f32(value), bits);
    if (std::isinf(value) || (bits & 0x7fff) == 0x7f7f) continue;
    const uint32_t wide = bits << 16;
    EXPECT_EQ(bf16_from_f32(__builtin_bit_cast(float, wide | 0x7fffu)), bits);
    EXPECT_EQ(bf16_from_f32(__builtin_bit_cast(float, wide | 0x8001u)), bits + 1);
    EXPECT_EQ(bf16_from_f32(__builtin_bit_cast(float, wide | 0x8000u)), bits % 2 == 0 ? bits : bits + 1);
  }
  EXPECT_TRUE(std::isnan(f32_from_bf16(bf16_from_f32(__builtin_bit_cast(float, 0x7f800001u)))));
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(size_of(DType::kF8E4M3), 1u);
  EXPECT_EQ(size_of(DType::kBF16), 2u);
  EXPECT_STREQ(to_string(DType::kBF16), "bf16");
}

}  // namespace
}  // namespace tandem::device
