// Plots as inline SVG for a page: lines over time with named stretches behind them, histograms, bars. Colours come from
// the page's CSS variables (report_html.cc), so that light and dark need no second drawing. No script. Pure.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tandem::workflow {

std::string escape_html(std::string_view text);

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;  // x ascending
};

// A stretch of the x axis with a name.
struct Band {
  double begin = 0, end = 0;
  std::string name;
  bool strong = false;  // the measured window itself
};

struct LinePlot {
  std::string title, x_name, y_name;
  std::vector<Series> series;  // at most 8 are told apart by colour
  std::vector<Band> bands;
};
// Empty plots say so in words. y starts at 0.
std::string line_plot(const LinePlot& plot);

struct Histogram {
  std::string title, x_name;
  std::vector<Series> series;  // points: (lower edge of a bin, share of the values); bins of one width
  double bin_width = 1;
};
std::string histogram(const Histogram& plot);

// Bins of one width from 0 to the 99.5th percentile of all values; what lies beyond is counted in the last one.
// values: one list per series, by name.
Histogram make_histogram(std::string title, std::string x_name,
                         const std::vector<std::pair<std::string, std::vector<double>>>& values);

// About `count` round numbers from 0 to at least `top`.
std::vector<double> ticks(double top, int count);

}  // namespace tandem::workflow
