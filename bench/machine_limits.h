// What this machine can do, measured: memory reads and f32 multiply-adds on all threads at once. Benchmarks print their
// share of these.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "device/buffer.h"
#include "kernels/context.h"

namespace tandem::bench {

struct MachineLimits {
  double read_bytes_per_s = 0;
  double flops_per_s = 0;
};

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Seconds that work(thread) takes on `num_threads` at once: the best of `repeats`.
inline double best_seconds(int num_threads, int repeats, const std::function<void(int)>& work) {
  double best = 1e30;
  for (int r = 0; r < repeats; ++r) {
    const auto start = std::chrono::steady_clock::now();
    {
      std::vector<std::jthread> threads;
      for (int t = 1; t < num_threads; ++t) threads.emplace_back([&work, t] { work(t); });
      work(0);
    }
    best = std::min(best, seconds_since(start));
  }
  return best;
}

__attribute__((target("avx2"))) inline uint64_t sum_avx2(const char* data, size_t bytes) {
  __m256i sums[8] = {};
  for (size_t at = 0; at + 256 <= bytes; at += 256) {
    for (int i = 0; i < 8; ++i) {
      sums[i] = _mm256_add_epi64(sums[i], _mm256_load_si256(reinterpret_cast<const __m256i*>(data + at) + i));
    }
  }
  uint64_t total = 0;
  for (const __m256i& sum : sums) total += uint64_t(_mm256_extract_epi64(sum, 0));
  return total;
}

inline double measure_read_bandwidth(int num_threads) {
  constexpr size_t kBytes = size_t(512) << 20;  // per thread, well beyond the caches
  std::vector<device::Buffer> buffers;
  for (int t = 0; t < num_threads; ++t) buffers.emplace_back(device::Device::kCpu, kBytes);
  std::vector<uint64_t> sums(static_cast<size_t>(num_threads));
  const double best = best_seconds(num_threads, 5, [&](int t) {
    sums[size_t(t)] = sum_avx2(static_cast<const char*>(buffers[size_t(t)].data()), kBytes);
  });
  return double(kBytes) * num_threads / best;
}

constexpr int64_t kFlopRounds = 2'000'000;

// Sums in flight on registers alone. In assembler: a compiler sees equal sums and keeps one.
__attribute__((target("avx512f"))) inline void spin_fma512(int64_t rounds) {
#define TANDEM_FMA(n) "vfmadd231ps %%zmm30, %%zmm31, %%zmm" #n "\n\t"
  for (int64_t i = 0; i < rounds; ++i) {
    __asm__ volatile(TANDEM_FMA(0) TANDEM_FMA(1) TANDEM_FMA(2) TANDEM_FMA(3) TANDEM_FMA(4) TANDEM_FMA(5) TANDEM_FMA(6)
                         TANDEM_FMA(7) TANDEM_FMA(8) TANDEM_FMA(9) TANDEM_FMA(10) TANDEM_FMA(11)
                     :
                     :
                     : "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10",
                       "zmm11");
  }
#undef TANDEM_FMA
}
__attribute__((target("avx2,fma"))) inline void spin_fma(int64_t rounds) {
#define TANDEM_FMA(n) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #n "\n\t"
  for (int64_t i = 0; i < rounds; ++i) {
    __asm__ volatile(TANDEM_FMA(0) TANDEM_FMA(1) TANDEM_FMA(2) TANDEM_FMA(3) TANDEM_FMA(4) TANDEM_FMA(5) TANDEM_FMA(6)
                         TANDEM_FMA(7) TANDEM_FMA(8) TANDEM_FMA(9) TANDEM_FMA(10) TANDEM_FMA(11)
                     :
                     :
                     : "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10",
                       "ymm11");
  }
#undef TANDEM_FMA
}

inline double measure_flops(int num_threads) {
  const bool wide = kernels::cpu_supports(kernels::Isa::kAvx512);
  const double best =
      best_seconds(num_threads, 5, [&](int) { wide ? spin_fma512(kFlopRounds) : spin_fma(kFlopRounds); });
  const double per_round = wide ? 12 * 32 : 12 * 16;  // 16 or 8 products and sums per instruction
  return double(kFlopRounds) * per_round * num_threads / best;
}

inline MachineLimits measure_machine(int num_threads) {
  return {measure_read_bandwidth(num_threads), measure_flops(num_threads)};
}

}  // namespace tandem::bench
