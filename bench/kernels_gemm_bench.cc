// Projections of the shapes s and m (tests/data/configs), decode and prefill. Weights of a decode case rotate through
// more memory than the caches hold, as a model's layers do.
//   kernels_gemm_bench [filter] [avx2|avx512|avx512_bf16]
#include "bench/kernels_harness.h"

namespace tandem::bench {
namespace {

using device::DType;
using device::TensorView;

struct Shape {
  const char* name;
  DType dtype;
  int64_t n, k;
};

constexpr Shape kShapes[] = {
    {"s/qkv_a", DType::kF8E4M3, 416, 512},       {"s/q_b", DType::kF8E4M3, 768, 256},
    {"s/o", DType::kF8E4M3, 512, 512},           {"s/gate_up", DType::kF8E4M3, 512, 512},
    {"s/down", DType::kF8E4M3, 512, 256},        {"s/head", DType::kBF16, 8192, 512},
    {"m/qkv_a", DType::kF8E4M3, 1344, 2048},     {"m/q_b", DType::kF8E4M3, 3072, 768},
    {"m/dense_up", DType::kF8E4M3, 21888, 2048}, {"m/dense_down", DType::kF8E4M3, 2048, 10944},
    {"m/head", DType::kBF16, 32000, 2048},
};

void run(KernelBench& bench) {
  for (const Shape& s : kShapes) {
    const std::string prefix = fmt::format("linear/{}/{}/n={}/k={}", s.name, to_string(s.dtype), s.n, s.k);
    if (!bench.wants(prefix) && !bench.filter.starts_with("linear")) continue;
    const BenchMatrix matrix(s.dtype, s.n, s.k, 1);
    std::vector<kernels::PackedWeight> weights;
    const size_t copies = std::max<size_t>(1, std::min<size_t>(400, (size_t(100) << 20) / matrix.bytes.size()));
    for (size_t i = 0; i < copies; ++i)
      weights.push_back(kernels::pack(bench.ctx.backend, bench.ctx.isa, {matrix.raw}));
    for (const int64_t m : {1, 2, 4, 8, 16, 32, 64, 512, 2048}) {
      if (s.dtype == DType::kBF16 && m > 64) continue;
      std::vector<float> x = bench_activations(m * s.k, 2);
      std::vector<float> y(size_t(m * s.n));
      size_t next = 0;
      bench.measure(fmt::format("{}/tokens={}", prefix, m), double(weights[0].bytes()), 2.0 * double(m * s.n * s.k),
                    [&] {
                      kernels::linear(bench.ctx, TensorView(x.data(), DType::kF32, {m, s.k}), weights[next++ % copies],
                                      TensorView(y.data(), DType::kF32, {m, s.n}));
                    });
    }
  }
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  tandem::bench::KernelBench bench(argc, argv);
  tandem::bench::run(bench);
}
