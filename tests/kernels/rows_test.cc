#include "kernels/norm.h"
#include "tests/kernels/support.h"

namespace tandem::kernels::test {
namespace {

struct Shape {
  int64_t rows, width;
};
constexpr Shape kShapes[] = {{1, 512}, {3, 33}, {40, 2048}, {300, 160}, {2, 7}, {5, 16}};

TEST(RmsNorm, DividesByTheRootMeanSquareAndMultipliesByTheWeight) {
  Rig rig(Backend::kRef);
  std::vector<float> x = {3, 4, 99, 0, 5, 99}, weight = {1, 10}, y(4);
  rms_norm(rig.ctx, view(x, {2, 2}), 3, view(weight, {2}), 0.0f, view(y, {2, 2}), TensorView());
  const float rms = std::sqrt(12.5f);
  EXPECT_FLOAT_EQ(y[0], 3 / rms);
  EXPECT_FLOAT_EQ(y[1], 40 / rms);
  EXPECT_FLOAT_EQ(y[3], 50 / rms);
}

TEST(RmsNorm, EveryInstructionSetAgreesWithTheOracleOnStridedRows) {
  for (const Shape& s : kShapes) {
    const int64_t stride = s.width + 3;
    std::vector<float> x = random_floats(size_t(s.rows * stride), 1, 3.0f), weight = random_floats(size_t(s.width), 2);
    std::vector<float> want(size_t(s.rows * s.width)), want_f32(want.size());
    Rig oracle(Backend::kRef);
    rms_norm(oracle.ctx, view(x, {s.rows, s.width}), stride, view(weight, {s.width}), 1e-5f,
             view(want, {s.rows, s.width}), view(want_f32, {s.rows, s.width}));
    EXPECT_EQ(want, want_f32);
    for (const Isa isa : supported_isas()) {
      Rig rig(Backend::kCpu, isa);
      std::vector<float> y(want.size(), NAN), y_f32(want.size(), NAN);
      rms_norm(rig.ctx, view(x, {s.rows, s.width}), stride, view(weight, {s.width}), 1e-5f, view(y, {s.rows, s.width}),
               view(y_f32, {s.rows, s.width}));
      EXPECT_LT(worst_error(y_f32, want), 1e-5) << to_string(isa);  // f32 sums in another order
      EXPECT_EQ(y, y_f32) << to_string(isa);
    }
  }
}

TEST(Swiglu, EveryInstructionSetAgreesWithTheOracle) {
  for (const Shape& s : kShapes) {
    std::vector<float> gate_up = random_floats(size_t(s.rows * 2 * s.width), 3, 4.0f), want(size_t(s.rows * s.width));
    gate_up[0] = -120.0f;  // the exponential overflows: silu is zero, not NaN
    Rig oracle(Backend::kRef);
    swiglu(oracle.ctx, view(gate_up, {s.rows, 2 * s.width}), view(want, {s.rows, s.width}));
    EXPECT_FLOAT_EQ(want[1], gate_up[1] / (1 + std::exp(-gate_up[1])) * gate_up[size_t(s.width) + 1]);
    for (const Isa isa : supported_isas()) {
      Rig rig(Backend::kCpu, isa);
      std::vector<float> y(want.size());
      swiglu(rig.ctx, view(gate_up, {s.rows, 2 * s.width}), view(y, {s.rows, s.width}));
      for (size_t i = 0; i < y.size(); ++i) {  // a few units for the exponential
        ASSERT_NEAR(y[i], want[i], 1e-6 * std::fabs(want[i]) + 1e-30) << to_string(isa);
      }
    }
  }
}

TEST(Embed, CopiesRowsOfEitherTypeExactly) {
  std::vector<float> table = random_floats(50 * 37, 4);
  std::vector<uint16_t> rounded = round_to_bf16(table);
  const std::vector<int32_t> ids = {0, 49, 7, 7};
  for (const bool wide : {false, true}) {
    for (int backend = -1; backend < int(supported_isas().size()); ++backend) {
      Rig rig(backend < 0 ? Backend::kRef : Backend::kCpu,
              backend < 0 ? Isa::kAvx2 : supported_isas()[size_t(backend)]);
      std::vector<float> y(4 * 37);
      embed(rig.ctx, ids, wide ? view(table, {50, 37}) : view(rounded, {50, 37}), view(y, {4, 37}));
      for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(y[i], table[size_t(ids[i / 37]) * 37 + i % 37]);
    }
  }
}

TEST(EmbedDeathTest, AnIdBeyondTheVocabularyIsABug) {
  Rig rig(Backend::kRef, Isa::kAvx2, 1);
  std::vector<float> table(8), y(2);
  const std::vector<int32_t> ids = {4};
  EXPECT_DEATH(embed(rig.ctx, ids, view(table, {4, 2}), view(y, {1, 2})), "");
}

TEST(CudaDeathTest, ABuildWithoutCudaRefusesTheBackend) {
  if (device::built_with_cuda()) GTEST_SKIP() << "this is a build with CUDA";
  Rig rig(Backend::kCuda, Isa::kAvx2, 1);
  std::vector<float> gate_up(4);
  std::vector<uint16_t> y(2);
  EXPECT_DEATH(swiglu(rig.ctx, view(gate_up, {1, 4}), view(y, {1, 2})), "swiglu");
}

}  // namespace
}  // namespace tandem::kernels::test
