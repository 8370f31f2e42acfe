// The tables that `tandem experts` prints, and the figures in them. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "experts/balancedness.h"
#include "experts/files.h"
#include "workflow/heat_map.h"

namespace tandem::app {

struct LayerFigures {
  int64_t total = 0;       // (token, choice) pairs
  double max_to_mean = 0;  // of the experts
  double log_width = 0;    // standard deviation of ln(count) over the experts that got any
  int32_t hottest = 0;
};
LayerFigures layer_figures(const experts::ExpertLoad& load, int32_t layer);

// Balancedness of the layers that have load.
struct BalanceSummary {
  double mean = 1, min = 1, max = 1;  // mean: of sums, so that layers weigh by their load
  int32_t worst_layer = 0;
};
BalanceSummary summarize(const experts::ExpertLoad& load, const experts::Balancedness& balancedness);

// A placement to judge a load by.
struct Judged {
  experts::ExpertPlacement placement;
  experts::EpTopology topology;
  std::string name;  // "trivial placement"
};

std::string load_table(const experts::ExpertLoad& load, const Judged* judged);
std::string placement_table(const experts::ExpertPlacement& placement, const experts::EpTopology& topology);
workflow::HeatMap load_heat_map(const experts::LoadFile& file, const std::string& name, const Judged* judged);

}  // namespace tandem::app
