// What this machine can do, measured: memory reads and bf16 (else f32) multiply-adds on all threads at once. Benchmarks
// print their share of these.
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

constexpr int64_t kFlopRounds = 4'000'000;

__attribute__((target("avx512f,avx512bf16"))) inline float spin_avx512_bf16() {
  __m512 sums[16] = {};
  const __m512bh a = __m512bh(_mm512_set1_epi32(0x3f803f80)), b = __m512bh(_mm512_set1_epi32(0x3a803a80));
  for (int64_t i = 0; i < kFlopRounds; ++i) {
    for (__m512& sum : sums) sum = _mm512_dpbf16_ps(sum, a, b);
  }
  float total = 0;
  for (const __m512& sum : sums) total += _mm512_cvtss_f32(sum);
  return total;
}

__attribute__((target("avx2,fma"))) inline float spin_avx2() {
  __m256 sums[12] = {};
  const __m256 a = _mm256_set1_ps(1.0f), b = _mm256_set1_ps(1e-3f);
  for (int64_t i = 0; i < kFlopRounds; ++i) {
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(a, b, sum);
  }
  float total = 0;
  for (const __m256& sum : sums) total += _mm256_cvtss_f32(sum);
  return total;
}

inline double measure_flops(int num_threads) {
  const bool bf16 = kernels::cpu_supports(kernels::Isa::kAvx512Bf16);
  std::vector<float> sums(static_cast<size_t>(num_threads));
  const double best =
      best_seconds(num_threads, 5, [&](int t) { sums[size_t(t)] = bf16 ? spin_avx512_bf16() : spin_avx2(); });
  const double per_round = bf16 ? 16 * 64 : 12 * 16;  // 32 products and sums per dpbf16, 8 per fma
  return double(kFlopRounds) * per_round * num_threads / best;
}

inline MachineLimits measure_machine(int num_threads) {
  return {measure_read_bandwidth(num_threads), measure_flops(num_threads)};
}

}  // namespace tandem::bench
