// The GPU's kernels at DeepSeek-V3's shapes. One line per case: microseconds, TFLOP/s, GB/s and the share of the nearer
// ceiling. Weights rotate over more than the L2 holds. The ceilings are bandwidth as a copy measures it here, and what
// the vendor's library reaches on a large product (785 TFLOP/s bf16, 1,246 FP8 with blocks of scales).
//   kernels_gpu_bench [FILTER]
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/moe.h"
#include "kernels/norm.h"

namespace tandem::bench {
namespace {

using namespace kernels;
using device::Buffer;
using device::Device;
using device::DType;
using device::TensorView;

constexpr double kBf16Ceiling = 785e12, kFp8Ceiling = 1246e12;
constexpr int64_t kHidden = 7168;

device::Stream must_create_stream() {
  auto stream = device::Stream::create();
  CHECK(stream.has_value());
  return std::move(*stream);
}
device::Event must_create_event() {
  auto event = device::Event::create();
  CHECK(event.has_value());
  return std::move(*event);
}

struct Bench {
  explicit Bench(std::string filter)
      : filter(std::move(filter)),
        workspace(Device::kCuda, size_t(6) << 30),
        stream(must_create_stream()),
        begin(must_create_event()),
        end(must_create_event()) {
    ctx.backend = Backend::kCuda;
    ctx.pool = &pool;
    ctx.workspace = &workspace;
    ctx.stream = &stream;
    std::mt19937 random(1);
    pattern.resize(size_t(32) << 20);
    // Numbers of either sign between 2^-3 and 2, as bf16 and as FP8.
    for (size_t i = 0; i < pattern.size(); i += 2) {
      const uint16_t bits = device::bf16_from_f32(float(int(random() % 2001) - 1000) * 1e-3f);
      std::memcpy(&pattern[i], &bits, 2);
    }
    const Buffer from(Device::kCuda, size_t(1) << 30), to(Device::kCuda, size_t(1) << 30);
    const double seconds = time([&](int) { device::copy_async(stream, to.data(), from.data(), to.bytes()); }, 4);
    bandwidth = 2.0 * double(to.bytes()) / seconds;
    fmt::print("copy {:.2f} TB/s\n{:<44}{:>9} {:>9} {:>8} {:>6}\n", bandwidth / 1e12, "case", "us", "TFLOP/s", "GB/s",
               "share");
  }

  template <class F>
  double time(const F& step, int steps) {
    for (int i = 0; i < 3; ++i) step(i);
    std::vector<double> seconds;
    for (int round = 0; round < 7; ++round) {
      begin.record(stream);
      for (int i = 0; i < steps; ++i) step(i);
      end.record(stream);
      end.synchronize();
      seconds.push_back(double(end.milliseconds_since(begin)) * 1e-3 / steps);
    }
    std::sort(seconds.begin(), seconds.end());
    return seconds[seconds.size() / 2];
  }

  template <class F>
  void measure(const std::string& name, double bytes, double flops, double ceiling, const F& step) {
    const double seconds = time(step, 20), ideal = std::max(bytes / bandwidth, flops / ceiling);
    fmt::print("{:<44}{:>9.1f} {:>9.0f} {:>8.0f} {:>6.2f}\n", name, seconds * 1e6, flops / seconds / 1e12,
               bytes / seconds / 1e9, ideal / seconds);
  }
  bool wants(const std::string& name) const { return name.find(filter) != std::string::npos; }

  Buffer filled(size_t bytes) const {
    Buffer buffer(Device::kCuda, bytes);
    for (size_t at = 0; at < bytes; at += pattern.size()) {
      device::copy_bytes(static_cast<std::byte*>(buffer.data()) + at, pattern.data(),
                         std::min(pattern.size(), bytes - at));
    }
    return buffer;
  }
  Buffer floats(int64_t count, float scale = 1.0f) const {
    std::vector<float> values(static_cast<size_t>(count));
    std::mt19937 random(3);
    for (float& v : values) v = float(int(random() % 2001) - 1000) * 1e-3f * scale;
    Buffer buffer(Device::kCuda, values.size() * sizeof(float));
    device::copy_bytes(buffer.data(), values.data(), buffer.bytes());
    return buffer;
  }
  // A weight of the given form whose bytes are the pattern.
  PackedWeight weight(DType type, int64_t n, int64_t k) {
    std::vector<uint8_t> raw(size_t(n * k) * size_of(type));
    for (size_t i = 0; i < raw.size(); ++i) {
      raw[i] = type == DType::kF8E4M3 ? uint8_t(pattern[i % pattern.size()] & 0xbf) : pattern[i % pattern.size()];
    }
    const std::vector<float> scales(size_t((n + 127) / 128 * ((k + 127) / 128)), 0.01f);
    RawWeight w;
    w.data = raw.data();
    w.dtype = type;
    w.rows = n;
    w.cols = w.row_stride = k;
    w.scale_inv = scales.data();
    w.scale_stride = (k + 127) / 128;
    PackedWeight packed = pack(Backend::kCuda, {}, {w});
    kept.emplace_back(Device::kCuda, packed.bytes());
    packed.place(static_cast<std::byte*>(kept.back().data()));
    return packed;
  }
  // The same weight several times over, more than the L2 holds in all.
  std::vector<PackedWeight> copies(const PackedWeight& weight) {
    std::vector<PackedWeight> all;
    const size_t count = std::clamp<size_t>((size_t(256) << 20) / weight.bytes(), 1, 16);
    for (size_t i = 0; i < count; ++i) {
      kept.emplace_back(Device::kCuda, weight.bytes());
      weight.copy_to(static_cast<std::byte*>(kept.back().data()));
      all.push_back(weight.like(static_cast<std::byte*>(kept.back().data())));
    }
    return all;
  }

  std::string filter;
  device::ThreadPool pool{1};
  device::Workspace workspace;
  device::Stream stream;
  device::Event begin, end;
  Context ctx;
  std::vector<uint8_t> pattern;
  std::vector<Buffer> kept;
  double bandwidth = 0;
};

void bench_linear(Bench& b) {
  struct Shape {
    const char* name;
    DType type;
    int64_t n, k;
  };
  for (const Shape& s :
       {Shape{"q_a+kv_a", DType::kF8E4M3, 2112, kHidden}, Shape{"q_b", DType::kF8E4M3, 24576, 1536},
        Shape{"o_proj", DType::kF8E4M3, kHidden, 16384}, Shape{"shared_up", DType::kF8E4M3, 4096, kHidden},
        Shape{"shared_down", DType::kF8E4M3, kHidden, 2048}, Shape{"dense_up", DType::kF8E4M3, 36864, kHidden},
        Shape{"head", DType::kBF16, 129280, kHidden}}) {
    if (!b.wants(std::string("linear/") + s.name)) continue;
    const PackedWeight first = b.weight(s.type, s.n, s.k);
    const std::vector<PackedWeight> weights = b.copies(first);
    for (const int64_t m : {64, 128, 256, 512, 4096}) {
      if (m > 512 && s.n > 36864) continue;
      const Buffer x = b.filled(size_t(m * s.k) * 2), y(Device::kCuda, size_t(m * s.n) * 4);
      const double bytes =
          double(s.n * s.k) * double(size_of(s.type)) + double(m) * (2.0 * double(s.k) + 4.0 * double(s.n));
      b.measure(fmt::format("linear/{}/m={}", s.name, m), bytes, 2.0 * double(m) * double(s.n) * double(s.k),
                s.type == DType::kBF16 ? kBf16Ceiling : kFp8Ceiling, [&](int i) {
                  linear(b.ctx, TensorView(x.data(), DType::kBF16, {m, s.k}), weights[size_t(i) % weights.size()],
                         TensorView(y.data(), DType::kF32, {m, s.n}));
                });
    }
    b.kept.clear();
  }
}

void bench_attention(Bench& b) {
  const MlaShape shape{128, 128, 64, 128, 512, 0.1f};
  constexpr int64_t kBlock = 64;
  KvUpWeights up;
  up.absorb_k.push_back(b.weight(DType::kBF16, 128 * 512, 128));
  up.absorb_v.push_back(b.weight(DType::kBF16, 128 * 128, 512));
  struct Case {
    const char* name;
    int64_t sequences, rows, prefix;
    DType cache = DType::kBF16;
  };
  for (const Case& c : {Case{"decode", 32, 1, 2050}, Case{"decode", 128, 1, 2050}, Case{"decode", 256, 1, 2050},
                        Case{"decode", 256, 1, 8192}, Case{"decode/fp8", 256, 1, 2050, DType::kF8E4M3},
                        Case{"decode/fp8", 256, 1, 8192, DType::kF8E4M3}, Case{"prefill", 1, 4096, 0}}) {
    const std::string name = fmt::format("attention/{}/batch={}/context={}", c.name, c.sequences, c.prefix + c.rows);
    if (!b.wants(name)) continue;
    const int64_t keys = c.prefix + c.rows, blocks = (keys + kBlock - 1) / kBlock, tokens = c.sequences * c.rows;
    const Buffer memory = b.filled(size_t(c.sequences * blocks * kBlock * shape.row_width()) * 2);
    std::vector<int32_t> table(size_t(c.sequences * blocks));
    for (size_t i = 0; i < table.size(); ++i) table[i] = int32_t(i);
    std::shuffle(table.begin(), table.end(), std::mt19937(1));
    const Buffer tables(Device::kCuda, table.size() * 4);
    device::copy_bytes(tables.data(), table.data(), tables.bytes());
    std::vector<SequenceSpan> spans;
    for (int64_t s = 0; s < c.sequences; ++s) {
      spans.push_back({int32_t(s * c.rows), int32_t(c.rows), int32_t(c.prefix),
                       static_cast<const int32_t*>(tables.data()) + s * blocks});
    }
    const Buffer sequences(Device::kCuda, spans.size() * sizeof(SequenceSpan));
    device::copy_bytes(sequences.data(), spans.data(), sequences.bytes());
    const std::span<const SequenceSpan> there(static_cast<const SequenceSpan*>(sequences.data()), spans.size());
    const PagedCache cache{memory.data(), c.cache, int32_t(kBlock), int32_t(c.sequences * blocks)};
    const Buffer q = b.filled(size_t(tokens * 128 * 192) * 2), out(Device::kCuda, size_t(tokens * 128 * 128) * 2);
    const double seen = c.rows == 1 ? double(keys) : double(keys) / 2;
    const double flops = 2.0 * double(tokens) * 128 * (seen * 1088 + 2 * 128 * 512);
    const double bytes = double(c.sequences * keys) * 576 * double(size_of(c.cache)) + double(tokens) * 128 * 320 * 2;
    b.measure(name, bytes, flops, kBf16Ceiling, [&](int) {
      const TensorView in(q.data(), DType::kBF16, {tokens, 128, 192}),
          to(out.data(), DType::kBF16, {tokens, 128 * 128});
      c.rows == 1 ? mla_decode(b.ctx, shape, in, up, cache, there, to)
                  : mla_prefill(b.ctx, shape, in, up, cache, there, to);
    });
  }
  b.kept.clear();
}

void bench_experts(Bench& b) {
  constexpr int64_t kWidth = 2048;
  const PackedWeight up = b.weight(DType::kF8E4M3, 2 * kWidth, kHidden),
                     down = b.weight(DType::kF8E4M3, kHidden, kWidth);
  for (const auto& [slots, tokens] : {std::pair<int64_t, int64_t>{4, 64}, {4, 256}, {4, 512}, {9, 4096}}) {
    const std::string name = fmt::format("experts/slots={}/tokens={}", slots, tokens);
    if (!b.wants(name)) continue;
    const size_t place = up.bytes() + down.bytes();
    const int64_t rounds = slots == 4 ? 3 : 1;  // layers, so that weights come from memory
    const Buffer slab(Device::kCuda, place * size_t(slots * rounds));
    std::vector<ExpertWeights> experts;
    for (int64_t s = 0; s < slots * rounds; ++s) {
      std::byte* at = static_cast<std::byte*>(slab.data()) + place * size_t(s);
      up.copy_to(at);
      down.copy_to(at + up.bytes());
      experts.push_back({up.like(at), down.like(at + up.bytes())});
    }
    std::vector<const ExpertWeights*> pointers;
    for (const ExpertWeights& e : experts) pointers.push_back(&e);
    const int64_t pairs = tokens * 8;
    std::vector<int32_t> begin, row_token;
    for (int64_t s = 0; s <= slots; ++s) begin.push_back(int32_t(pairs * s / slots));
    for (int64_t p = 0; p < pairs; ++p) row_token.push_back(int32_t(p % tokens));
    const Buffer begins(Device::kCuda, begin.size() * 4), rows(Device::kCuda, row_token.size() * 4);
    device::copy_bytes(begins.data(), begin.data(), begins.bytes());
    device::copy_bytes(rows.data(), row_token.data(), rows.bytes());
    const SlotSort sort{{static_cast<const int32_t*>(begins.data()), begin.size()},
                        {static_cast<const int32_t*>(rows.data()), row_token.size()}};
    const Buffer x = b.filled(size_t(tokens * kHidden) * 2), y(Device::kCuda, size_t(pairs * kHidden) * 4);
    const double flops = 2.0 * double(pairs) * 3 * double(kWidth * kHidden);
    const double bytes = double(slots) * 3 * double(kWidth * kHidden) + double(pairs) * double(kHidden) * 5;
    b.measure(name, bytes, flops, kFp8Ceiling, [&](int i) {
      grouped_mlp(b.ctx, TensorView(x.data(), DType::kBF16, {tokens, kHidden}), sort,
                  std::span(pointers).subspan(size_t(i % rounds * slots), size_t(slots)), int32_t(kWidth),
                  TensorView(y.data(), DType::kF32, {pairs, kHidden}));
    });
  }
  b.kept.clear();
}

void bench_rows(Bench& b) {
  for (const int64_t m : {256, 4096}) {
    const Buffer x = b.floats(m * kHidden), weight = b.floats(kHidden), y(Device::kCuda, size_t(m * kHidden) * 2);
    const Buffer y_f32(Device::kCuda, size_t(m * kHidden) * 4);
    const TensorView in(x.data(), DType::kF32, {m, kHidden}), w(weight.data(), DType::kF32, {kHidden});
    if (b.wants("rms_norm")) {
      b.measure(fmt::format("rms_norm/m={}", m), double(m * kHidden) * 6, 0, kBf16Ceiling, [&](int) {
        rms_norm(b.ctx, in, kHidden, w, 1e-6f, TensorView(y.data(), DType::kBF16, {m, kHidden}), {});
      });
    }
    const GateConfig config{256, 8, 8, 4};
    const Buffer router = b.floats(256 * kHidden, 0.02f), bias = b.floats(256, 0.1f);
    const Buffer ids(Device::kCuda, size_t(m) * 32), weights(Device::kCuda, size_t(m) * 32);
    const TensorView id_view(ids.data(), DType::kI32, {m, 8}), weight_view(weights.data(), DType::kF32, {m, 8});
    if (b.wants("gate")) {
      b.measure(fmt::format("gate/m={}", m), double((m + 256) * kHidden) * 4, 2.0 * double(m) * 256 * double(kHidden),
                60e12, [&](int) {
                  gate(b.ctx, config, in, TensorView(router.data(), DType::kF32, {256, kHidden}),
                       TensorView(bias.data(), DType::kF32, {256}), id_view, weight_view);
                });
    }
    const int64_t pairs = m * 8;
    const Buffer results(Device::kCuda, size_t(pairs * kHidden) * 4), begin(Device::kCuda, 64);
    const Buffer row_token(Device::kCuda, size_t(pairs) * 4), result_of(Device::kCuda, size_t(pairs) * 8);
    std::vector<int32_t> slots(static_cast<size_t>(pairs));
    for (size_t i = 0; i < slots.size(); ++i) slots[i] = int32_t(i * 7 % 4);
    const Buffer slot_ids(Device::kCuda, slots.size() * 4);
    device::copy_bytes(slot_ids.data(), slots.data(), slot_ids.bytes());
    const GpuSlotSort sort{static_cast<int32_t*>(begin.data()), static_cast<int32_t*>(row_token.data()),
                           static_cast<const float*>(results.data()), kHidden,
                           static_cast<const float**>(result_of.data())};
    sort_by_slot(b.ctx, TensorView(slot_ids.data(), DType::kI32, {m, 8}), 4, sort);
    if (b.wants("sort_by_slot")) {
      b.measure(fmt::format("sort_by_slot/m={}", m), double(pairs) * 16, 0, kBf16Ceiling, [&](int) {
        sort_by_slot(b.ctx, TensorView(slot_ids.data(), DType::kI32, {m, 8}), 4, sort);
      });
    }
    if (b.wants("combine")) {
      b.measure(fmt::format("combine/m={}", m), double(pairs * kHidden) * 4 + double(m * kHidden) * 8, 0, kBf16Ceiling,
                [&](int) {
                  combine(b.ctx, {static_cast<const float* const*>(result_of.data()), size_t(pairs)}, weight_view,
                          TensorView(y_f32.data(), DType::kF32, {m, kHidden}));
                });
    }
  }
}

}  // namespace

int run(const std::string& filter) {
  const Result<device::GpuInfo> gpu = device::find_gpu(0);
  if (!gpu) {
    fmt::print("kernels_gpu_bench: {}\n", gpu.error().message);
    return 0;
  }
  fmt::print("{}\n", gpu->name);
  Bench bench(filter);
  bench_linear(bench);
  bench_attention(bench);
  bench_experts(bench);
  bench_rows(bench);
  return 0;
}

}  // namespace tandem::bench

int main(int argc, char** argv) { return tandem::bench::run(argc > 1 ? argv[1] : ""); }
