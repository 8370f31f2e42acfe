// PassMeter: how evenly single passes loaded the ranks, as SGLang logs and counts it with
// --enable-expert-distribution-metrics. A pass is shown when every rank has told its part. Owner: the balancer's
// thread. Unlike SGLang's, a figure is the mean over the largest rank load of sums over layers with experts (windows:
// over passes, too), so that dense layers and passes of few tokens do not flatter it; a pass without tokens has none.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/experts/pass_recorder.h"
#include "profile/metrics.h"

namespace tandem::engine {

struct PassMeterConfig {
  int32_t num_ranks = 1, num_layers = 0;
  int64_t heatmap_interval = 0;  // passes between additions to sglang:eplb_gpu_physical_count; 0: never
  std::string model_name;        // label of the metrics
};

class PassMeter {
 public:
  static constexpr std::array<size_t, 3> kWindows = {10, 100, 1000};

  PassMeter(const PassMeterConfig& config, profile::Metrics& metrics);

  // What one of num_reporters sources knows of some passes; those of one source ascend. Returns the lines of the passes
  // that became complete; without what a source has not kept, passes are left out.
  std::vector<std::string> add(std::vector<PassLoad> loads, int32_t num_reporters);
  // Empties the windows.
  void clear();
  // Of the longest window; none before the first pass.
  std::optional<double> average() const;

 private:
  struct Sums {
    int32_t reporters = 0;
    std::vector<int64_t> pairs;  // [num_layers, num_ranks]
  };
  // Over the layers of a pass: the ranks' mean load and the largest.
  struct Weight {
    double mean = 0, largest = 0;
  };
  struct Window {
    std::deque<Weight> passes;
    Weight sum;
    double value() const { return sum.largest > 0 ? sum.mean / sum.largest : 1; }
  };

  std::optional<std::string> show(uint64_t pass_id, const std::vector<int64_t>& pairs);
  void count_heat(const std::vector<int64_t>& pairs);

  const PassMeterConfig config_;
  std::map<uint64_t, Sums> open_;  // passes that not every source has told of
  std::array<Window, kWindows.size()> windows_;
  int64_t num_passes_ = 0;
  profile::Gauge pass_;
  std::array<profile::Gauge, kWindows.size()> averages_;
  std::vector<profile::Histogram> heat_;  // by layer
};

}  // namespace tandem::engine
