#include "engine/experts/pass_meter.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace tandem::engine {
namespace {

constexpr size_t kMaxOpenPasses = 4096;  // a source that is lost must not make them grow

}  // namespace

PassMeter::PassMeter(const PassMeterConfig& config, profile::Metrics& metrics) : config_(config) {
  const profile::Labels labels = {{"model_name", config.model_name}};
  pass_ = metrics.gauge("tandem:eplb_pass_balancedness", "Mean over largest rank load of the last pass with tokens.",
                        labels);
  for (size_t i = 0; i < kWindows.size(); ++i) {
    profile::Labels with_window = labels;
    with_window["passes"] = std::to_string(kWindows[i]);
    averages_[i] = metrics.gauge("tandem:eplb_window_balancedness", "The same of the last passes.", with_window);
  }
  if (config.heatmap_interval <= 0) return;
  std::vector<double> ranks(size_t(config.num_ranks));
  std::iota(ranks.begin(), ranks.end(), 0.0);
  for (int32_t layer = 0; layer < config.num_layers; ++layer) {
    profile::Labels of_layer = {{"layer", std::to_string(layer)}};
    heat_.push_back(metrics.histogram("sglang:eplb_gpu_physical_count",
                                      "Token and choice pairs of each layer, by the rank that computed them.", of_layer,
                                      ranks));
  }
}

std::vector<std::string> PassMeter::add(std::vector<PassLoad> loads, int32_t num_reporters) {
  std::vector<std::string> lines;
  for (const PassLoad& load : loads) {
    if (open_.size() >= kMaxOpenPasses) open_.erase(open_.begin());
    Sums& sums = open_[load.pass_id];
    sums.pairs.resize(load.pairs.size());
    for (size_t i = 0; i < load.pairs.size(); ++i) sums.pairs[i] += load.pairs[i];
    sums.reporters += 1;
    if (sums.reporters < num_reporters) continue;
    if (std::optional<std::string> line = show(load.pass_id, sums.pairs)) lines.push_back(std::move(*line));
    // What is older stays incomplete for ever: every source has come past it.
    open_.erase(open_.begin(), open_.upper_bound(load.pass_id));
  }
  return lines;
}

std::optional<std::string> PassMeter::show(uint64_t pass_id, const std::vector<int64_t>& pairs) {
  CHECK(pairs.size() == size_t(config_.num_layers) * size_t(config_.num_ranks));
  Weight pass;
  int64_t sum = 0;
  for (auto at = pairs.begin(); at != pairs.end(); at += config_.num_ranks) {
    const int64_t layer = std::accumulate(at, at + config_.num_ranks, int64_t{0});
    sum += layer;
    pass.mean += double(layer) / config_.num_ranks;
    pass.largest += double(*std::max_element(at, at + config_.num_ranks));
  }
  if (sum == 0) return std::nullopt;
  if (!heat_.empty() && num_passes_ % config_.heatmap_interval == 0) count_heat(pairs);
  num_passes_ += 1;
  const double current = pass.mean / pass.largest;
  std::string line =
      fmt::format("[Expert Balancedness] forward_pass_id={} current_pass_balancedness={:.3f} ", pass_id, current);
  pass_.set(current);
  for (size_t i = 0; i < kWindows.size(); ++i) {
    Window& window = windows_[i];
    window.passes.push_back(pass);
    window.sum.mean += pass.mean;
    window.sum.largest += pass.largest;
    if (window.passes.size() > kWindows[i]) {
      window.sum.mean -= window.passes.front().mean;
      window.sum.largest -= window.passes.front().largest;
      window.passes.pop_front();
    }
    averages_[i].set(window.value());
    line += fmt::format("last_{}_average_balancedness={:.3f} ", kWindows[i], window.value());
  }
  // SGLang has two spaces here.
  return line + fmt::format(" gpu_physical_count_sum={}", sum);
}

// As SGLang fills its histogram: bucket q counts the pairs of rank q.
void PassMeter::count_heat(const std::vector<int64_t>& pairs) {
  std::vector<double> increments(size_t(config_.num_ranks) + 1);
  for (size_t layer = 0; layer < heat_.size(); ++layer) {
    double sum = 0;
    for (size_t rank = 0; rank < size_t(config_.num_ranks); ++rank) {
      increments[rank] = double(pairs[layer * size_t(config_.num_ranks) + rank]);
      sum += increments[rank] * double(rank);
    }
    heat_[layer].add(increments, sum);
  }
}

void PassMeter::clear() { windows_ = {}; }

std::optional<double> PassMeter::average() const {
  if (windows_.back().passes.empty()) return std::nullopt;
  return windows_.back().value();
}

}  // namespace tandem::engine
