#include "app/expert_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "base/check.h"

namespace tandem::app {
namespace {

using experts::Balancedness;
using experts::EpTopology;
using experts::ExpertLoad;
using experts::ExpertPlacement;
using workflow::grouped;
using workflow::HeatMap;
using workflow::HeatPanel;

bool has_load(const ExpertLoad& load, int32_t layer) {
  const auto tokens = load.layer(layer);
  return std::any_of(tokens.begin(), tokens.end(), [](int64_t t) { return t > 0; });
}

std::string layer_range(int32_t first, int32_t last) {
  return first == last ? std::to_string(first) : fmt::format("{}-{}", first, last);
}

struct ReplicaFigures {
  int32_t replicated = 0, most = 0, most_expert = 0;
  int32_t same_rank = 0;  // slots that hold an expert which their rank holds already
};

ReplicaFigures replica_figures(const ExpertPlacement& placement, const EpTopology& topology, int32_t layer) {
  std::vector<int32_t> replicas(size_t(placement.num_logical), 0), last_rank(size_t(placement.num_logical), -1);
  ReplicaFigures figures;
  for (int32_t slot = 0; slot < placement.num_slots; ++slot) {
    const auto expert = size_t(placement.layer(layer)[size_t(slot)]);
    replicas[expert] += 1;
    // A rank's slots follow each other, so its earlier copy was the last one seen.
    figures.same_rank += last_rank[expert] == topology.rank_of(slot) ? 1 : 0;
    last_rank[expert] = topology.rank_of(slot);
  }
  const auto most = std::max_element(replicas.begin(), replicas.end());
  figures.most = *most;
  figures.most_expert = int32_t(most - replicas.begin());
  figures.replicated = int32_t(std::count_if(replicas.begin(), replicas.end(), [](int32_t r) { return r > 1; }));
  return figures;
}

}  // namespace

LayerFigures layer_figures(const ExpertLoad& load, int32_t layer) {
  const auto tokens = load.layer(layer);
  LayerFigures figures;
  figures.total = std::accumulate(tokens.begin(), tokens.end(), int64_t{0});
  if (figures.total == 0) return figures;
  const auto hottest = std::max_element(tokens.begin(), tokens.end());
  figures.hottest = int32_t(hottest - tokens.begin());
  figures.max_to_mean = double(*hottest) * double(tokens.size()) / double(figures.total);
  double sum = 0, squares = 0, count = 0;
  for (int64_t value : tokens) {
    if (value == 0) continue;
    sum += std::log(double(value));
    squares += std::log(double(value)) * std::log(double(value));
    count += 1;
  }
  figures.log_width = std::sqrt(std::max(0.0, squares / count - sum / count * (sum / count)));
  return figures;
}

BalanceSummary summarize(const ExpertLoad& load, const Balancedness& balancedness) {
  BalanceSummary summary{balancedness.mean, 2, 0, 0};
  for (int32_t layer = 0; layer < load.num_layers; ++layer) {
    if (!has_load(load, layer)) continue;
    const double value = balancedness.layer[size_t(layer)];
    if (value < summary.min) summary.worst_layer = layer;
    summary.min = std::min(summary.min, value);
    summary.max = std::max(summary.max, value);
  }
  if (summary.max == 0) return {};
  return summary;
}

std::string load_table(const ExpertLoad& load, const Judged* judged) {
  std::optional<Balancedness> balancedness;
  if (judged != nullptr) balancedness = experts::balancedness(load, judged->placement, judged->topology);
  std::string out = fmt::format("{:>7} {:>16} {:>9} {:>10} {:>9}{}\n", "layer", "pairs", "max/mean", "log-width",
                                "hottest", balancedness ? "  balancedness" : "");
  for (int32_t layer = 0; layer < load.num_layers; ++layer) {
    if (!has_load(load, layer)) {
      int32_t last = layer;
      while (last + 1 < load.num_layers && !has_load(load, last + 1)) ++last;
      out += fmt::format("{:>7} {:>16}\n", layer_range(layer, last), "no load");
      layer = last;
      continue;
    }
    const LayerFigures figures = layer_figures(load, layer);
    out += fmt::format("{:>7} {:>16} {:>9.2f} {:>10.3f} {:>9}", layer, grouped(figures.total), figures.max_to_mean,
                       figures.log_width, figures.hottest);
    if (balancedness) out += fmt::format("  {:>12.3f}", balancedness->layer[size_t(layer)]);
    out += '\n';
  }
  return out;
}

std::string placement_table(const ExpertPlacement& placement, const EpTopology& topology) {
  std::string out = fmt::format("{:>7} {:>11} {:>14} {:>10} {:>21}\n", "layer", "replicated", "most replicas",
                                "of expert", "twice on one rank");
  for (int32_t layer = 0; layer < placement.num_layers; ++layer) {
    const ReplicaFigures figures = replica_figures(placement, topology, layer);
    out += fmt::format("{:>7} {:>11} {:>14} {:>10} {:>21}\n", layer, figures.replicated, figures.most,
                       figures.most > 1 ? std::to_string(figures.most_expert) : "-", figures.same_rank);
  }
  return out;
}

HeatMap load_heat_map(const experts::LoadFile& file, const std::string& name, const Judged* judged) {
  const ExpertLoad& load = file.load;
  HeatMap map;
  map.title = "Expert load: " + std::filesystem::path(name).filename().string();
  map.num_rows = load.num_layers;
  HeatPanel experts{"experts: load against the mean of the layer",
                    "expert",
                    load.num_logical,
                    {load.tokens.begin(), load.tokens.end()},
                    1.41421356,
                    "hottest / mean",
                    {},
                    1};
  int64_t pairs = 0;
  int32_t hottest_layer = 0, loaded_layers = 0;
  double width_sum = 0;
  for (int32_t layer = 0; layer < load.num_layers; ++layer) {
    const LayerFigures figures = layer_figures(load, layer);
    pairs += figures.total;
    loaded_layers += figures.total > 0 ? 1 : 0;
    width_sum += figures.log_width;
    experts.bars.push_back(figures.max_to_mean);
    if (figures.max_to_mean > experts.bars[size_t(hottest_layer)]) hottest_layer = layer;
  }
  const double hottest = experts.bars[size_t(hottest_layer)];
  experts.bar_full = std::max(2.0, std::ceil(hottest / 2) * 2);
  map.subtitle =
      fmt::format("{} layers of {} experts, {} of them with load", load.num_layers, load.num_logical, loaded_layers);
  if (!file.facts.model.empty()) map.subtitle += ", model " + file.facts.model;
  if (!file.facts.phase.empty()) map.subtitle += ", " + file.facts.phase;
  map.figures = {
      {grouped(pairs), "(token, choice) pairs"},
      {fmt::format("{:.1f} x mean", hottest),
       fmt::format("hottest: layer {}, expert {}", hottest_layer, layer_figures(load, hottest_layer).hottest)},
      {fmt::format("{:.2f}", loaded_layers == 0 ? 0 : width_sum / loaded_layers), "log-width, mean of layers"}};
  map.panels.push_back(std::move(experts));
  if (judged == nullptr) return map;
  const EpTopology& topology = judged->topology;
  const Balancedness balancedness = experts::balancedness(load, judged->placement, topology);
  const BalanceSummary summary = summarize(load, balancedness);
  map.figures.emplace_back(fmt::format("{:.3f}", summary.mean), "balancedness, " + judged->name);
  map.figures.emplace_back(fmt::format("{:.3f}", summary.min), fmt::format("worst: layer {}", summary.worst_layer));
  map.panels.push_back(
      {fmt::format("ranks ({}: {} slots on {} ranks)", judged->name, topology.num_slots(), topology.num_ranks), "rank",
       topology.num_ranks, experts::rank_loads(load, judged->placement, topology), 1.1, "balancedness",
       balancedness.layer, 1});
  return map;
}

}  // namespace tandem::app
