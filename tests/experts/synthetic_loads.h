// Seeded expert loads for tests and benchmarks. Every load respects the ceiling of one expert: a token uses it at most
// once, so it gets at most 1/top_k of the pairs. The same seed gives the same counts wherever math is IEEE and libm
// agrees to rounding of counts.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <span>
#include <string>
#include <vector>

#include "experts/placement.h"

namespace tandem::experts {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t x = state_ += 0x9E3779B97F4A7C15;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
  }
  int32_t below(int32_t bound) { return int32_t(next() % uint64_t(bound)); }
  double uniform() { return double(next() >> 11) * 0x1p-53; }
  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(2 * std::numbers::pi * uniform());
  }

 private:
  uint64_t state_;
};

struct LoadShape {
  int32_t num_layers = 58, num_logical = 256, top_k = 8;
  int64_t tokens = int64_t(1) << 20;  // per layer and window
};

// Log-weights of one layer become counts: clipped at 1/top_k of the pairs, with the noise of counting (sqrt(c)).
inline void append_counts(std::vector<double> log_weights, const LoadShape& shape, Random& random, ExpertLoad& load) {
  std::vector<double> part(log_weights.size());
  double sum = 0;
  for (size_t i = 0; i < part.size(); ++i) sum += part[i] = std::exp(log_weights[i]);
  for (double& each : part) each /= sum;
  for (int round = 0; round < 20; ++round) {
    double over = 0, rest = 0;
    for (double& each : part) {
      over += std::max(0.0, each - 1.0 / shape.top_k);
      each = std::min(each, 1.0 / shape.top_k);
      rest += each < 1.0 / shape.top_k ? each : 0;
    }
    if (over <= 0 || rest <= 0) break;
    for (double& each : part) each *= each < 1.0 / shape.top_k ? 1 + over / rest : 1;
  }
  const double pairs = double(shape.tokens) * shape.top_k;
  for (double each : part) {
    const double expected = each * pairs;
    const double counted = std::round(expected + std::sqrt(expected) * random.normal());
    load.tokens.push_back(int64_t(std::clamp(counted, 0.0, double(shape.tokens))));
  }
}

enum class LoadKind { kZipf, kLogNormal, kWideLogNormal, kFewHot, kGrouped, kEqual, kOneAtCeiling };

inline constexpr LoadKind kLoadKinds[] = {LoadKind::kZipf,        LoadKind::kLogNormal, LoadKind::kWideLogNormal,
                                          LoadKind::kFewHot,      LoadKind::kGrouped,   LoadKind::kEqual,
                                          LoadKind::kOneAtCeiling};

inline const char* name_of(LoadKind kind) {
  switch (kind) {
    case LoadKind::kZipf: return "zipf";
    case LoadKind::kLogNormal: return "lognormal 0.35-0.65";
    case LoadKind::kWideLogNormal: return "lognormal 0.65-0.9";
    case LoadKind::kFewHot: return "few hot";
    case LoadKind::kGrouped: return "grouped";
    case LoadKind::kEqual: return "equal";
    case LoadKind::kOneAtCeiling: return "one at 1/k";
  }
  return "";
}

inline std::vector<double> log_weights_of(LoadKind kind, int32_t num_logical, Random& random) {
  std::vector<double> weights(size_t(num_logical), 0.0);
  const double width = (kind == LoadKind::kWideLogNormal ? 0.65 : 0.35) +
                       random.uniform() * (kind == LoadKind::kWideLogNormal ? 0.25 : 0.3);
  std::vector<double> group(8);
  for (double& each : group) each = 0.4 * random.normal();
  for (int32_t i = 0; i < num_logical; ++i) {
    double& weight = weights[size_t(i)];
    if (kind == LoadKind::kZipf) weight = -0.7 * std::log(i + 1.0);
    if (kind == LoadKind::kLogNormal || kind == LoadKind::kWideLogNormal) weight = width * random.normal();
    if (kind == LoadKind::kFewHot) weight = 0.1 * random.normal() + (i < std::max(1, num_logical / 40) ? 2.3 : 0.0);
    if (kind == LoadKind::kGrouped) weight = group[size_t(i * 8 / num_logical)] + 0.45 * random.normal();
    if (kind == LoadKind::kOneAtCeiling) weight = i == 0 ? 20 : 0.3 * random.normal();
  }
  if (kind == LoadKind::kLogNormal || kind == LoadKind::kWideLogNormal) {
    // One or two experts are 2 to 6 times hotter than drawn.
    for (int32_t hot = 1 + random.below(2); hot > 0; --hot) {
      weights[size_t(random.below(num_logical))] += std::log(2 + 4 * random.uniform());
    }
  }
  for (int32_t i = num_logical - 1; i > 0 && kind != LoadKind::kGrouped; --i) {
    std::swap(weights[size_t(i)], weights[size_t(random.below(i + 1))]);
  }
  return weights;
}

inline ExpertLoad synthetic_load(LoadKind kind, const LoadShape& shape, uint64_t seed) {
  Random random(seed);
  ExpertLoad load{shape.num_layers, shape.num_logical, {}};
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    append_counts(log_weights_of(kind, shape.num_logical, random), shape, random, load);
  }
  return load;
}

// Windows of traffic that changes: from one window to the next each expert's log-weight moves by `step` (a standard
// deviation; 0.2 is about 20 % of its load) and is drawn back to the mean so that the spread of the layer stays.
inline std::vector<ExpertLoad> drifting_loads(LoadKind kind, const LoadShape& shape, int32_t num_windows, double step,
                                              uint64_t seed) {
  Random random(seed);
  std::vector<std::vector<double>> state;
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    state.push_back(log_weights_of(kind, shape.num_logical, random));
  }
  std::vector<ExpertLoad> windows;
  for (int32_t window = 0; window < num_windows; ++window) {
    windows.push_back({shape.num_layers, shape.num_logical, {}});
    for (std::vector<double>& weights : state) {
      append_counts(weights, shape, random, windows.back());
      double mean = 0, square = 0;
      for (double weight : weights) mean += weight / double(weights.size());
      for (double weight : weights) square += (weight - mean) * (weight - mean) / double(weights.size());
      const double kept = square > step * step ? std::sqrt(1 - step * step / square) : 0;
      for (double& weight : weights) weight = mean + kept * (weight - mean) + step * random.normal();
    }
  }
  return windows;
}

}  // namespace tandem::experts
