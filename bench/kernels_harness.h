// What the kernel benchmarks share: a context, timing, and one JSON line per case with its share of the machine's
// limit, which is measured in the same run.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "bench/machine_limits.h"
#include "kernels/context.h"
#include "kernels/gemm.h"

namespace tandem::bench {

struct KernelBench {
  explicit KernelBench(int argc, char** argv)
      : filter(argc > 1 ? argv[1] : ""), pool(kThreads), workspace(device::Device::kCpu, size_t(1) << 30) {
    ctx.backend = kernels::Backend::kCpu;
    ctx.isa = kernels::best_isa();
    if (argc > 2) {
      for (const kernels::Isa isa : {kernels::Isa::kAvx2, kernels::Isa::kAvx512, kernels::Isa::kAvx512Bf16}) {
        if (kernels::to_string(isa) == std::string(argv[2])) ctx.isa = isa;
      }
    }
    ctx.pool = &pool;
    ctx.workspace = &workspace;
    limits = {measure_read_bandwidth(kThreads), measure_flops(kThreads)};
    fmt::print("{{\"machine\":{{\"threads\":{},\"isa\":\"{}\",\"read_gb_s\":{:.1f},\"gflop_s\":{:.0f}}}}}\n", kThreads,
               kernels::to_string(ctx.isa), limits.read_bytes_per_s / 1e9, limits.flops_per_s / 1e9);
  }

  bool wants(const std::string& name) const { return name.find(filter) != std::string::npos; }

  // Runs `step` for about a third of a second after a warm-up. bytes, flops: least work of one step.
  template <class F>
  void measure(const std::string& name, double bytes, double flops, const F& step) {
    if (!wants(name)) return;
    std::vector<double> seconds;
    for (int i = 0; i < 3; ++i) step();
    const auto begin = std::chrono::steady_clock::now();
    while (seconds.size() < 5 || (seconds_since(begin) < 0.35 && seconds.size() < 100000)) {
      const auto start = std::chrono::steady_clock::now();
      step();
      seconds.push_back(seconds_since(start));
    }
    std::sort(seconds.begin(), seconds.end());
    const double median = seconds[seconds.size() / 2];
    const double ideal = std::max(bytes / limits.read_bytes_per_s, flops / limits.flops_per_s);
    fmt::print(
        "{{\"case\":\"{}\",\"best_us\":{:.1f},\"p10_us\":{:.1f},\"median_us\":{:.1f},\"p90_us\":{:.1f},\"gb_s\":{:.1f},"
        "\"gflop_s\":{:.0f},\"share_of_limit\":{:.2f},\"best_share\":{:.2f}}}\n",
        name, seconds[0] * 1e6, seconds[seconds.size() / 10] * 1e6, median * 1e6,
        seconds[seconds.size() * 9 / 10] * 1e6, bytes / median / 1e9, flops / median / 1e9, ideal / median,
        ideal / seconds[0]);
  }

  static constexpr int kThreads = 2;
  std::string filter;
  device::ThreadPool pool;
  device::Workspace workspace;
  kernels::Context ctx;
  MachineLimits limits;
};

// Invented weights: FP8 with scales, or bf16.
struct BenchMatrix {
  BenchMatrix(device::DType dtype, int64_t rows, int64_t cols, uint32_t seed) {
    std::mt19937 random(seed);
    bytes.resize(size_t(rows * cols) * size_of(dtype));
    if (dtype == device::DType::kF8E4M3) {
      for (uint8_t& b : bytes) b = uint8_t(random() & 0xbf);
      scales.assign(size_t((rows + 127) / 128 * ((cols + 127) / 128)), 0.01f);
    } else {
      for (size_t i = 0; i < bytes.size(); i += 2) {
        const uint16_t value = device::bf16_from_f32(float(random() % 1000) * 1e-3f - 0.5f);
        std::copy_n(reinterpret_cast<const uint8_t*>(&value), 2, &bytes[i]);
      }
    }
    raw.data = bytes.data();
    raw.dtype = dtype;
    raw.rows = rows;
    raw.cols = raw.row_stride = cols;
    raw.scale_inv = scales.empty() ? nullptr : scales.data();
    raw.scale_stride = (cols + 127) / 128;
  }
  BenchMatrix(const BenchMatrix&) = delete;
  std::vector<uint8_t> bytes;
  std::vector<float> scales;
  kernels::RawWeight raw;
};

inline std::vector<float> bench_activations(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = float(random() % 1000) * 2e-3f - 1.0f;
  return values;
}

}  // namespace tandem::bench
