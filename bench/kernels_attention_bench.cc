// Attention of the shapes s and m (tests/data/configs): prefill of one prompt, decode of a batch at context 256 and of
// one long sequence.   kernels_attention_bench [filter] [avx2|avx512|avx512_bf16]
#include <numeric>

#include "bench/kernels_harness.h"
#include "kernels/attention.h"

namespace tandem::bench {
namespace {

using device::DType;
using device::TensorView;

struct Named {
  const char* name;
  kernels::MlaShape shape;
};

constexpr int32_t kBlockTokens = 16;

// Multiplications and additions: expanding each key once, then scores and sums over the visible keys.
double prefill_flops(const kernels::MlaShape& s, double tokens) {
  const double expand = tokens * s.kv_lora_rank * (s.nope_dim + s.v_dim);
  const double attend = tokens * (tokens + 1) / 2 * (s.nope_dim + s.rope_dim + s.v_dim);
  return 2 * s.num_heads * (expand + attend);
}

double decode_flops(const kernels::MlaShape& s, double sequences, double context) {
  const double absorb = s.kv_lora_rank * (s.nope_dim + s.v_dim);
  return 2 * s.num_heads * sequences * (absorb + context * (s.row_width() + s.kv_lora_rank));
}

void run(KernelBench& bench, const Named& named) {
  const kernels::MlaShape& shape = named.shape;
  const BenchMatrix kv_b(DType::kF8E4M3, shape.num_heads * (shape.nope_dim + shape.v_dim), shape.kv_lora_rank, 1);
  const kernels::KvUpWeights weights = kernels::pack_kv_up(bench.ctx.backend, bench.ctx.isa, shape, kv_b.raw);
  const int64_t width = int64_t(shape.num_heads) * (shape.nope_dim + shape.rope_dim);
  struct Case {
    bool decode;
    int32_t sequences, context;
  };
  for (const Case& c : {Case{false, 1, 128}, Case{false, 1, 512}, Case{false, 1, 2048}, Case{true, 1, 256},
                        Case{true, 8, 256}, Case{true, 64, 256}, Case{true, 1, 16384}}) {
    const int32_t rows = c.decode ? 1 : c.context, blocks = (c.context + kBlockTokens - 1) / kBlockTokens;
    std::vector<int32_t> table(size_t(blocks) * size_t(c.sequences));
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(1));
    std::vector<float> cache_memory = bench_activations(int64_t(table.size()) * kBlockTokens * shape.row_width(), 2);
    const kernels::PagedCache cache{cache_memory.data(), DType::kF32, kBlockTokens, int32_t(table.size())};
    std::vector<kernels::SequenceSpan> spans;
    for (int32_t s = 0; s < c.sequences; ++s)
      spans.push_back({s * rows, rows, c.context - rows, &table[size_t(s * blocks)]});
    const int64_t tokens = int64_t(rows) * c.sequences;
    std::vector<float> q = bench_activations(tokens * width, 3), out(size_t(tokens * shape.num_heads * shape.v_dim));
    const TensorView q_view(q.data(), DType::kF32, {tokens, width});
    const TensorView out_view(out.data(), DType::kF32, {tokens, int64_t(shape.num_heads) * shape.v_dim});
    const std::string name = fmt::format("attention/{}/{}/sequences={}/context={}", named.name,
                                         c.decode ? "decode" : "prefill", c.sequences, c.context);
    const double bytes = double(cache_memory.size()) * 4 + double(weights.expand.bytes());
    const double flops = c.decode ? decode_flops(shape, c.sequences, c.context) : prefill_flops(shape, c.context);
    bench.measure(name, bytes, flops, [&] {
      (c.decode ? kernels::mla_decode : kernels::mla_prefill)(bench.ctx, shape, q_view, weights, cache, spans,
                                                              out_view);
    });
  }
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  tandem::bench::KernelBench bench(argc, argv);
  tandem::bench::run(bench, {"s", {8, 64, 32, 64, 128, 0.1f}});
  tandem::bench::run(bench, {"m", {16, 128, 64, 128, 512, 0.07f}});
}
