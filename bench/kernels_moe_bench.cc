// Routed experts of the shapes s and m (tests/data/configs): grouped MLP over tokens that choose experts at random,
// weights rotating through several layers.   kernels_moe_bench [filter] [avx2|avx512|avx512_bf16]
#include <numeric>
#include <set>

#include "bench/kernels_harness.h"
#include "kernels/moe.h"

namespace tandem::bench {
namespace {

using device::DType;
using device::TensorView;

struct Shape {
  const char* name;
  int64_t hidden;
  int32_t width, experts, top_k, layers;
};

void run(KernelBench& bench, const Shape& s) {
  const BenchMatrix gate(DType::kF8E4M3, s.width, s.hidden, 1), down(DType::kF8E4M3, s.hidden, s.width, 2);
  std::vector<kernels::ExpertWeights> weights(size_t(s.experts * s.layers));
  for (kernels::ExpertWeights& w : weights) {
    w.gate_up = kernels::pack(bench.ctx.backend, bench.ctx.isa, {gate.raw, gate.raw});
    w.down = kernels::pack(bench.ctx.backend, bench.ctx.isa, {down.raw});
  }
  std::vector<const kernels::ExpertWeights*> pointers;
  for (const kernels::ExpertWeights& w : weights) pointers.push_back(&w);
  for (const int64_t tokens : {1, 8, 32, 64, 512, 2048}) {
    std::mt19937 random(3);
    std::vector<int32_t> order(static_cast<size_t>(s.experts)), slots;
    std::iota(order.begin(), order.end(), 0);
    for (int64_t t = 0; t < tokens; ++t) {
      std::shuffle(order.begin(), order.end(), random);
      slots.insert(slots.end(), order.begin(), order.begin() + s.top_k);
    }
    std::vector<float> x = bench_activations(tokens * s.hidden, 4);
    std::vector<float> y(slots.size() * size_t(s.hidden));
    const double active = double(std::set<int32_t>(slots.begin(), slots.end()).size());
    const double per_expert = double(weights[0].gate_up.bytes() + weights[0].down.bytes());
    int32_t layer = 0;
    bench.measure(fmt::format("grouped_mlp/{}/tokens={}", s.name, tokens), active * per_expert,
                  2.0 * 3.0 * double(slots.size()) * double(s.hidden) * s.width, [&] {
                    const device::WorkspaceScope scope(bench.workspace);
                    const kernels::SlotSort sort = kernels::sort_by_slot(
                        bench.ctx, TensorView(slots.data(), DType::kI32, {tokens, s.top_k}), s.experts);
                    kernels::grouped_mlp(bench.ctx, TensorView(x.data(), DType::kF32, {tokens, s.hidden}), sort,
                                         {pointers.data() + s.experts * (layer++ % s.layers), size_t(s.experts)},
                                         s.width, TensorView(y.data(), DType::kF32, {int64_t(slots.size()), s.hidden}));
                  });
  }
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  tandem::bench::KernelBench bench(argc, argv);
  if (bench.wants("grouped_mlp/s/") || bench.filter.starts_with("grouped_mlp/s")) {
    tandem::bench::run(bench, {"s", 512, 256, 32, 4, 8});
  }
  if (bench.wants("grouped_mlp/m/") || bench.filter.starts_with("grouped_mlp/m")) {
    tandem::bench::run(bench, {"m", 2048, 1408, 64, 6, 1});
  }
}
