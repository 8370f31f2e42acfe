#include "kernels/gemm.h"

#include "tests/kernels/support.h"

namespace tandem::kernels::test {
namespace {

// f32 sums of the same products in two orders: a few ulp of the largest partial sum. Inputs rounded to bf16 would show
// as 2^-9, one wrong weight among the K <= 700 of most of these cases as 1/sqrt(K) = 4e-2.
constexpr double kTolerance = 2e-5;

struct Case {
  DType dtype;
  int64_t m, n, k;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    for (const int64_t m : {1, 2, 3, 5, 8, 9, 12, 13, 25, 67, 300}) {
      all.push_back({dtype, m, 160, 192});
      all.push_back({dtype, m, 33, 130});
    }
    all.push_back({dtype, 1, 416, 512});
    all.push_back({dtype, 4, 31, 64});
    all.push_back({dtype, 14, 97, 639});  // odd inputs
    all.push_back({dtype, 1, 64, 127});
    all.push_back({dtype, 40, 64, 2200});   // more than one chunk of widened weight
    all.push_back({dtype, 800, 40, 2200});  // and more than one batch of tiles
  }
  return all;
}

std::vector<float> reference(const std::vector<RawWeight>& stacked, std::vector<float>& x, int64_t m, int64_t n,
                             int64_t k) {
  Rig rig(Backend::kRef);
  const PackedWeight w = pack(Backend::kRef, Isa::kAvx2, stacked);
  std::vector<float> y(size_t(m * n));
  linear(rig.ctx, view(x, {m, k}), w, view(y, {m, n}));
  return y;
}

TEST(Gemm, OracleIsThePlainSumOverScaledWeights) {
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16, DType::kF32}) {
    const Matrix matrix(dtype, 150, 301, 7);
    std::vector<float> x = random_floats(5 * 301, 8);
    const std::vector<float> y = reference({matrix.all()}, x, 5, 150, 301);
    std::vector<float> want(y.size());
    for (int64_t m = 0; m < 5; ++m) {
      for (int64_t n = 0; n < 150; ++n) {
        double sum = 0;
        for (int64_t k = 0; k < 301; ++k) sum += double(x[size_t(m * 301 + k)]) * matrix.at(n, k);
        want[size_t(m * 150 + n)] = float(sum);
      }
    }
    EXPECT_LT(worst_error(y, want), kTolerance) << to_string(dtype);
  }
}

TEST(Gemm, EveryInstructionSetAgreesWithTheOracle) {
  for (const Isa isa : supported_isas()) {
    Rig rig(Backend::kCpu, isa);
    for (const Case& c : cases()) {
      const Matrix matrix(c.dtype, c.n, c.k, uint64_t(c.n * 1000 + c.k));
      std::vector<float> x = random_floats(size_t(c.m * c.k), uint64_t(c.m));
      const PackedWeight w = pack(Backend::kCpu, isa, {matrix.all()});
      std::vector<float> y(size_t(c.m * c.n), NAN);
      linear(rig.ctx, view(x, {c.m, c.k}), w, view(y, {c.m, c.n}));
      const std::vector<float> want = reference({matrix.all()}, x, c.m, c.n, c.k);
      EXPECT_LT(worst_error(y, want), kTolerance)
          << to_string(isa) << " " << to_string(c.dtype) << " m=" << c.m << " n=" << c.n << " k=" << c.k;
    }
  }
}

// The absorbed weights: slices of kv_b_proj that begin inside a scale block, as they are and transposed.
TEST(Gemm, SlicesAndTransposedSlicesTakeTheScalesOfTheirPlace) {
  const Matrix matrix(DType::kF8E4M3, 384, 320, 11);
  for (const Isa isa : supported_isas()) {
    Rig rig(Backend::kCpu, isa);
    for (const bool transposed : {false, true}) {
      for (const int64_t row : {0, 64, 96, 102}) {
        for (const int64_t col : {0, 34, 192}) {
          RawWeight part = matrix.part(row, 64, col, 128);
          part.transposed = transposed;
          const int64_t n = transposed ? 128 : 64, k = transposed ? 64 : 128;
          for (const int64_t m : {1, 7, 30}) {
            std::vector<float> x = random_floats(size_t(m * k), uint64_t(row + col));
            std::vector<float> y(size_t(m * n), NAN), want(y.size());
            const PackedWeight w = pack(Backend::kCpu, isa, {part});
            ASSERT_EQ(w.rows(), n);
            linear(rig.ctx, view(x, {m, k}), w, view(y, {m, n}));
            for (int64_t i = 0; i < m * n; ++i) {
              double sum = 0;
              for (int64_t j = 0; j < k; ++j) {
                const float weight = transposed ? matrix.at(row + j, col + i % n) : matrix.at(row + i % n, col + j);
                sum += double(x[size_t(i / n * k + j)]) * weight;
              }
              want[size_t(i)] = float(sum);
            }
            EXPECT_LT(worst_error(y, want), kTolerance) << to_string(isa) << " " << row << "," << col << " m=" << m;
          }
        }
      }
    }
  }
}

// Odd scale borders cannot be cut between pairs: such a view is widened with its scales, rounded to bf16 (2^-8).
TEST(Gemm, AViewWithOddScaleBordersIsWidened) {
  const Matrix matrix(DType::kF8E4M3, 200, 300, 12);
  RawWeight part = matrix.part(0, 50, 27, 200);
  std::vector<float> x = random_floats(200, 1);
  std::vector<float> want = reference({part}, x, 1, 50, 200);
  for (const Isa isa : supported_isas()) {
    Rig rig(Backend::kCpu, isa);
    std::vector<float> y(50);
    linear(rig.ctx, view(x, {1, 200}), pack(Backend::kCpu, isa, {part}), view(y, {1, 50}));
    EXPECT_LT(worst_error(y, want), 1e-2);
  }
}

TEST(Gemm, StackedWeightsGiveTheirOutputsSideBySide) {
  const Matrix first(DType::kF8E4M3, 256, 192, 1), second(DType::kF8E4M3, 160, 192, 2), third(DType::kBF16, 8, 192, 3);
  for (const Isa isa : supported_isas()) {
    Rig rig(Backend::kCpu, isa);
    for (const bool mixed : {false, true}) {
      std::vector<RawWeight> stacked = {first.all(), second.all()};
      if (mixed) stacked.push_back(third.all());
      const int64_t n = mixed ? 424 : 416;
      for (const int64_t m : {1, 20}) {
        std::vector<float> x = random_floats(size_t(m * 192), 5);
        std::vector<float> y(size_t(m * n), NAN);
        linear(rig.ctx, view(x, {m, 192}), pack(Backend::kCpu, isa, stacked), view(y, {m, n}));
        const std::vector<float> want = reference(stacked, x, m, n, 192);
        // A mixed stack rounds its FP8 part with scales to bf16.
        EXPECT_LT(worst_error(y, want), mixed ? 2e-2 : kTolerance);
      }
    }
  }
}

TEST(Gemm, AddsToTheResidual) {
  const Matrix matrix(DType::kF8E4M3, 100, 256, 4);
  for (const Isa isa : supported_isas()) {
    Rig rig(Backend::kCpu, isa);
    const PackedWeight w = pack(Backend::kCpu, isa, {matrix.all()});
    for (const int64_t m : {1, 12, 40}) {
      std::vector<float> x = random_floats(size_t(m * 256), 5);
      std::vector<float> plain(size_t(m * 100)), residual = random_floats(size_t(m * 100), 6), sum = residual;
      linear(rig.ctx, view(x, {m, 256}), w, view(plain, {m, 100}));
      linear_add(rig.ctx, view(x, {m, 256}), w, view(sum, {m, 100}));
      for (size_t i = 0; i < plain.size(); ++i) EXPECT_EQ(sum[i], residual[i] + plain[i]);
    }
  }
}

TEST(Gemm, ARowIsBitForBitTheSameInAnyBatchAndOnAnyNumberOfThreads) {
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    const Matrix matrix(dtype, 161, 2400, 21);
    std::vector<float> x = random_floats(70 * 2400, 22);
    for (const Isa isa : supported_isas()) {
      const PackedWeight w = pack(Backend::kCpu, isa, {matrix.all()});
      std::vector<float> alone(70 * 161);
      Rig single(Backend::kCpu, isa, 1), several(Backend::kCpu, isa, 3);
      for (int64_t m = 0; m < 70; ++m) {
        linear(single.ctx, TensorView(x.data() + m * 2400, DType::kF32, {1, 2400}), w,
               TensorView(alone.data() + m * 161, DType::kF32, {1, 161}));
      }
      for (const int64_t batch : {2, 5, 8, 9, 13, 24, 70}) {
        std::vector<float> together(size_t(batch * 161));
        linear(several.ctx, TensorView(x.data(), DType::kF32, {batch, 2400}), w, view(together, {batch, 161}));
        for (size_t i = 0; i < together.size(); ++i) ASSERT_EQ(together[i], alone[i]) << to_string(isa) << " " << batch;
      }
    }
  }
}

// FP8 codes as a column, through a product with one: [m, codes].
std::vector<float> widened(const Context& ctx, const std::vector<uint8_t>& codes, int64_t m) {
  const int64_t n = int64_t(codes.size());
  const std::vector<float> scales(size_t((n + 127) / 128), 1.0f);
  RawWeight w;
  w.data = codes.data();
  w.dtype = DType::kF8E4M3;
  w.rows = n;
  w.cols = w.row_stride = w.scale_stride = 1;
  w.scale_inv = scales.data();
  std::vector<float> x(size_t(m), 1.0f), y(size_t(m * n));
  linear(ctx, view(x, {m, 1}), pack(Backend::kCpu, ctx.isa, {w}), view(y, {m, n}));
  return y;
}

TEST(Gemm, EveryFp8NumberIsWidenedExactly) {
  std::vector<uint8_t> codes;
  for (int code = 0; code < 256; ++code) {
    if (!std::isnan(device::f32_from_f8e4m3(uint8_t(code)))) codes.push_back(uint8_t(code));
  }
  ASSERT_EQ(codes.size(), 254u);
  for (const Isa isa : supported_isas()) {
    Rig rig(Backend::kCpu, isa);
    for (const int64_t m : {1, 8, 20}) {  // widened in registers, or once for all rows
      const std::vector<float> y = widened(rig.ctx, codes, m);
      for (size_t i = 0; i < y.size(); ++i) {
        ASSERT_EQ(y[i], device::f32_from_f8e4m3(codes[i % 254])) << to_string(isa) << " code " << int(codes[i % 254]);
      }
    }
  }
}

// A broken checkpoint must not pass for a working one: NaN stays NaN, at the least for its own output.
TEST(Gemm, AnFp8NanMakesItsOutputNan) {
  for (const Isa isa : supported_isas()) {
    Rig rig(Backend::kCpu, isa);
    for (const uint8_t nan : {uint8_t(0x7f), uint8_t(0xff)}) {
      std::vector<uint8_t> codes(64, 0x38);  // 1
      codes[40] = nan;
      for (const int64_t m : {1, 20}) {
        const std::vector<float> y = widened(rig.ctx, codes, m);
        for (size_t i = 0; i < y.size(); i += 64) {
          EXPECT_TRUE(std::isnan(y[i + 40])) << to_string(isa);
          EXPECT_EQ(y[i], 1.0f) << to_string(isa);
        }
      }
    }
  }
}

// Every product is one f32 multiply-add in the order of the inputs, whatever the width of the registers.
TEST(Gemm, EveryInstructionSetGivesTheSameBits) {
  for (const Case& c : cases()) {
    const Matrix matrix(c.dtype, c.n, c.k, 3);
    std::vector<float> x = random_floats(size_t(c.m * c.k), 4), first;
    for (const Isa isa : supported_isas()) {
      Rig rig(Backend::kCpu, isa);
      std::vector<float> y(size_t(c.m * c.n));
      linear(rig.ctx, view(x, {c.m, c.k}), pack(Backend::kCpu, isa, {matrix.all()}), view(y, {c.m, c.n}));
      if (first.empty()) first = y;
      EXPECT_EQ(y, first) << to_string(isa) << " m=" << c.m << " n=" << c.n << " k=" << c.k;
    }
  }
}

TEST(Gemm, PackedFp8StaysOneBytePerValue) {
  const Matrix matrix(DType::kF8E4M3, 512, 1024, 3);
  const PackedWeight w = pack(Backend::kCpu, best_isa(), {matrix.all()});
  EXPECT_LT(w.bytes(), size_t(512 * 1024) * 102 / 100);
}

TEST(Gemm, WorkspaceOfTheStatedSizeSuffices) {
  for (const Isa isa : supported_isas()) {
    for (const int64_t m : {1, 30, 900}) {
      const Matrix matrix(DType::kF8E4M3, 64, 2500, 3);
      Rig probe(Backend::kCpu, isa);
      Rig rig(Backend::kCpu, isa, 2, linear_workspace_bytes(probe.ctx, m, 64, 2500));
      std::vector<float> x(size_t(m * 2500));
      std::vector<float> y(size_t(m * 64));
      linear(rig.ctx, view(x, {m, 2500}), pack(Backend::kCpu, isa, {matrix.all()}), view(y, {m, 64}));
    }
  }
}

}  // namespace
}  // namespace tandem::kernels::test
