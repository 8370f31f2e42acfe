// Heat maps of loads as SVG: one row per layer, one cell per expert or rank, coloured by how its load compares with the
// layer's mean (a diverging scale of equal ratios, so cold and hot show alike), light or dark as the reader prefers.
// The text needs nothing from outside: no script, no font, no network. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace tandem::workflow {

std::string grouped(int64_t number);  // "1,234,567"

struct HeatPanel {
  std::string title;        // "experts"
  std::string column_name;  // "expert": for the hover text "layer 3, expert 17: 1,234 (2.10 x mean)"
  int32_t num_columns = 0;
  std::vector<double> amounts;  // [rows, num_columns], not negative; a row of zeros is drawn as "no load"
  double level_ratio = 2;       // one colour further is so many times the load
  std::string bar_title;        // "hottest / mean"
  std::vector<double> bars;     // [rows], drawn right of each row from 0 to bar_full; empty: none
  double bar_full = 1;
};

struct HeatMap {
  std::string title, subtitle;
  std::vector<std::pair<std::string, std::string>> figures;  // large numbers with their captions
  int32_t num_rows = 0;
  std::vector<HeatPanel> panels;  // one below the other
};

std::string heat_map_svg(const HeatMap& map);
std::string heat_map_html(const HeatMap& map);  // a page around it

}  // namespace tandem::workflow
