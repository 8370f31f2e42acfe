// Rows to FP8 and back against the plain loops, to the bit, and how far they are from what they were.
#include "kernels/fp8_rows.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "tests/kernels/support.h"

namespace tandem::kernels::test {
namespace {

constexpr int64_t kWidths[] = {1, 16, 100, 127, 128, 129, 256, 400, 7168};

std::vector<std::byte> quantised(const std::vector<float>& x) {
  std::vector<std::byte> row(size_t(fp8_row_bytes(int64_t(x.size()))), std::byte(0xab));
  quantise_row(x.data(), int64_t(x.size()), row.data());
  return row;
}
std::vector<float> back(const std::vector<std::byte>& row, size_t width) {
  std::vector<float> x(width);
  dequantise_row(row.data(), int64_t(width), x.data());
  return x;
}
float scale_of(const std::vector<std::byte>& row, size_t width, size_t group) {
  float scale = 0;
  std::memcpy(&scale, row.data() + fp8_scales_at(int64_t(width)) + group * sizeof(float), sizeof(float));
  return scale;
}

// Magnitudes over the whole range of E4M3 within one group, its subnormal numbers and zeros included.
std::vector<float> spread_floats(size_t count, uint64_t seed) {
  std::vector<float> x = random_floats(count, seed);
  for (size_t i = 0; i < count; ++i) x[i] = std::ldexp(x[i], -int(i * 7 % 23));
  if (count > 20) x[17] = 0.0f, x[18] = -0.0f;
  return x;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST(Fp8Rows, AreThePlainLoopsToTheBit) {
  for (const int64_t width : kWidths) {
    for (const float size : {1.0f, 3e-8f, 2e4f}) {
      std::vector<float> x = spread_floats(size_t(width), uint64_t(width));
      for (float& v : x) v *= size;
      const std::vector<std::byte> row = quantised(x);
      std::vector<std::byte> plain(row.size());
      ref::quantise_row(x.data(), width, plain.data());
      ASSERT_EQ(row, plain) << width << " columns";
      std::vector<float> plain_back(x.size());
      ref::dequantise_row(row.data(), width, plain_back.data());
      ASSERT_TRUE(same_bits(back(row, x.size()), plain_back)) << width << " columns";
    }
  }
}

TEST(Fp8Rows, EveryCodeAndEveryTieIsRoundedToNearestEven) {
  // One group with 448 as its largest magnitude has a scale of one: what is left is the rounding alone.
  for (int code = 0; code < 0x7e; ++code) {
    const float low = device::f32_from_f8e4m3(uint8_t(code)), high = device::f32_from_f8e4m3(uint8_t(code + 1));
    const float middle = (low + high) / 2;
    std::vector<float> x = {448.0f, low, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f), -middle};
    const std::vector<std::byte> row = quantised(x);
    ASSERT_EQ(scale_of(row, x.size(), 0), 1.0f);
    const int even = code % 2 == 0 ? code : code + 1;
    const int wanted[] = {0x7e, code, even, code, code + 1, even | 0x80};
    for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(int(row[i]), wanted[i]) << x[i];
  }
}

TEST(Fp8Rows, AValueComesBackWithinHalfAStep) {
  for (const int64_t width : kWidths) {
    const std::vector<float> x = spread_floats(size_t(width), 3 + uint64_t(width));
    const std::vector<std::byte> row = quantised(x);
    const std::vector<float> y = back(row, x.size());
    double error = 0, size = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      // Half a step: three bits of mantissa, or of the subnormal numbers' fixed step of 2^-9.
      const float step = std::max(std::abs(x[i]) / 16, scale_of(row, x.size(), i / kFp8Group) / 1024);
      EXPECT_LE(std::abs(y[i] - x[i]), step * (1 + 1e-5f)) << i << " of " << width;
      error += std::pow(double(y[i]) - double(x[i]), 2);
      size += std::pow(double(x[i]), 2);
    }
    EXPECT_LT(std::sqrt(error / size), 0.04);
  }
}

TEST(Fp8Rows, EachGroupHasItsOwnScale) {
  std::vector<float> x(300, 1.0f);
  for (size_t i = 128; i < 256; ++i) x[i] = 1000.0f;
  for (size_t i = 256; i < 300; ++i) x[i] = 0.0f;
  const std::vector<std::byte> row = quantised(x);
  EXPECT_EQ(scale_of(row, x.size(), 0), 1.0f / 448.0f);
  EXPECT_EQ(scale_of(row, x.size(), 1), 1000.0f / 448.0f);
  EXPECT_EQ(scale_of(row, x.size(), 2), 1e-10f / 448.0f);
  const std::vector<float> y = back(row, x.size());
  EXPECT_NEAR(y[0], 1.0f, 1e-6f);
  EXPECT_NEAR(y[200], 1000.0f, 1e-3f);
  EXPECT_EQ(y[299], 0.0f);
}

TEST(Fp8Rows, WhatIsNotFiniteStaysSoAndSpoilsNoScale) {
  std::vector<float> x = spread_floats(256, 9);
  const std::vector<float> clean = back(quantised(x), x.size());
  x[100] = NAN;
  x[101] = INFINITY;
  x[102] = -INFINITY;
  const std::vector<std::byte> row = quantised(x);
  std::vector<std::byte> plain(row.size());
  ref::quantise_row(x.data(), 256, plain.data());
  EXPECT_EQ(row, plain);
  EXPECT_EQ(find_bad_scale(row.data(), 256), -1);
  const std::vector<float> y = back(row, x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    if (i >= 100 && i <= 102) {
      EXPECT_TRUE(std::isnan(y[i])) << i;
    } else if (std::abs(x[i]) < 0.5f) {
      EXPECT_NEAR(y[i], clean[i], std::abs(x[i]) / 8 + 1e-4f) << i;
    }
  }
  std::vector<float> none(128, NAN);
  EXPECT_EQ(find_bad_scale(quantised(none).data(), 128), -1);
}

TEST(Fp8Rows, AScaleThatIsNoneIsFound) {
  const std::vector<float> x = spread_floats(300, 5);
  for (const float bad : {NAN, INFINITY, -INFINITY, 0.0f, -1.0f}) {
    for (size_t group = 0; group < 3; ++group) {
      std::vector<std::byte> row = quantised(x);
      EXPECT_EQ(find_bad_scale(row.data(), 300), -1);
      std::memcpy(row.data() + fp8_scales_at(300) + group * sizeof(bad), &bad, sizeof(bad));
      EXPECT_EQ(find_bad_scale(row.data(), 300), int64_t(group)) << bad;
    }
  }
}

TEST(Fp8Rows, ARowIsAQuarterOfF32sBytes) {
  EXPECT_EQ(fp8_row_bytes(7168), 7168 + 56 * 4);
  EXPECT_EQ(fp8_row_bytes(256), 256 + 2 * 4 + 8);
  EXPECT_EQ(fp8_row_bytes(1), 16);
}

}  // namespace
}  // namespace tandem::kernels::test
