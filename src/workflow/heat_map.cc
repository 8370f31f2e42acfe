#include "workflow/heat_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "workflow/plot.h"

namespace tandem::workflow {
namespace {

// Level kMeanLevel is about the mean, each further one level_ratio times as much. Interpolated in OKLCH from blue over
// grey to red, with the grey near the page's colour.
constexpr const char* kLight[] = {"#1b589e", "#3e71b0", "#5f8ac1", "#7fa3d2", "#a1bde1", "#c5d7ee", "#eef0f3",
                                  "#f0cfbf", "#e5b19a", "#d89379", "#ca755c", "#b95642", "#a7352a", "#940015"};
constexpr const char* kDark[] = {"#63b9fe", "#57a0da", "#4b87b8", "#406f95", "#375874", "#2e4252", "#292c2e",
                                 "#4f3c26", "#714d29", "#945f30", "#b8723a", "#dd8447", "#ff9758", "#ffa96c"};
constexpr int kLevels = 14, kMeanLevel = 6;

constexpr int kLeft = 52, kTop = 76, kGap = 26, kBarGap = 14, kBarWidth = 110, kRight = 16;
constexpr int kMapWidth = 1024, kMapHeight = 560;

int level_of(double times_mean, double level_ratio) {
  if (times_mean <= 0) return 0;
  return std::clamp(int(std::lround(std::log(times_mean) / std::log(level_ratio))) + kMeanLevel, 0, kLevels - 1);
}

std::string colours(const char* const* palette, const char* text, const char* faint, const char* page) {
  std::string out = fmt::format("--text:{};--faint:{};--page:{};", text, faint, page);
  for (int level = 0; level < kLevels; ++level) out += fmt::format("--c{}:{};", level, palette[level]);
  return out;
}

// The variables stand on the svg itself, so that a bare .svg file has them, too.
std::string style() {
  std::string out = ".heat{" + colours(kLight, "#1d2126", "#6b7280", "#ffffff") + "}\n";
  out += "@media (prefers-color-scheme:dark){.heat{" + colours(kDark, "#e6e8eb", "#9099a4", "#15181c") + "}}\n";
  out += ".heat{font:11px system-ui,sans-serif;background:var(--page)}\n";
  out += ".heat text{fill:var(--faint);font-variant-numeric:tabular-nums}\n";
  out += ".heat .t{fill:var(--text);font-size:13px;font-weight:600}\n.heat .e{text-anchor:end}\n";
  out += ".heat .m{text-anchor:middle}\n.heat .b{fill:var(--faint);opacity:.55}\n";
  out += ".heat .g{stroke:var(--faint);stroke-width:.5;opacity:.5}\n.heat .n{fill:url(#none)}\n";
  out += ".heat path:hover{stroke:var(--text);stroke-width:1.5;paint-order:stroke}\n";
  for (int level = 0; level < kLevels; ++level) out += fmt::format(".heat .c{0}{{fill:var(--c{0})}}\n", level);
  return out;
}

struct Cell {
  int width, height;
};

Cell cell_of(const HeatPanel& panel, int32_t num_rows) {
  return {std::clamp(kMapWidth / std::max(1, panel.num_columns), 3, 32),
          std::clamp(kMapHeight / std::max(1, num_rows), 6, 24)};
}

// Columns between two ticks: a round number, at most about 16 ticks.
int32_t tick_step(int32_t count) {
  int32_t step = 1;
  while (count / step > 16) step *= 2;
  return step;
}

class Drawing {
 public:
  std::string out;

  void text(double x, double y, const char* css, std::string_view text) {
    out += fmt::format("<text x=\"{:g}\" y=\"{:g}\"{}>{}</text>\n", x, y,
                       *css == 0 ? std::string() : fmt::format(" class=\"{}\"", css), escape_html(text));
  }

  void row(const HeatPanel& panel, int32_t row, const Cell& cell, int top) {
    const double* const amounts = panel.amounts.data() + size_t(row) * size_t(panel.num_columns);
    double sum = 0;
    for (int32_t column = 0; column < panel.num_columns; ++column) sum += amounts[column];
    const int y = top + row * cell.height;
    if (sum <= 0) {
      out += fmt::format("<path class=\"n\" d=\"M{} {}h{}v{}h-{}z\"><title>layer {}: no load</title></path>\n", kLeft,
                         y, cell.width * panel.num_columns, cell.height, cell.width * panel.num_columns, row);
      return;
    }
    for (int32_t column = 0; column < panel.num_columns; ++column) {
      const double ratio = amounts[column] * panel.num_columns / sum;
      out += fmt::format(
          "<path class=\"c{}\" d=\"M{} {}h{}v{}h-{}z\"><title>layer {}, {} {}: {} ({:.2f} x mean)</title></path>\n",
          level_of(ratio, panel.level_ratio), kLeft + column * cell.width, y, cell.width, cell.height, cell.width, row,
          panel.column_name, column, grouped(int64_t(std::llround(amounts[column]))), ratio);
    }
    if (panel.bars.empty()) return;
    const double value = panel.bars[size_t(row)];
    const double length = std::clamp(value / panel.bar_full, 0.0, 1.0) * kBarWidth;
    out += fmt::format("<path class=\"b\" d=\"M{} {}h{:.1f}v{}h-{:.1f}z\"><title>layer {}: {} {:.3f}</title></path>\n",
                       kLeft + cell.width * panel.num_columns + kBarGap, y + 1, length, std::max(1, cell.height - 2),
                       length, row, escape_html(panel.bar_title), value);
  }

  void axes(const HeatPanel& panel, int32_t num_rows, const Cell& cell, int top) {
    const int bottom = top + num_rows * cell.height, right = kLeft + panel.num_columns * cell.width;
    const int32_t columns = tick_step(panel.num_columns);
    for (int32_t column = 0; column < panel.num_columns; column += columns) {
      text(kLeft + (column + 0.5) * cell.width, top - 5, "m", std::to_string(column));
      if (column > 0) line(kLeft + column * cell.width, top, kLeft + column * cell.width, bottom);
    }
    const int32_t rows = num_rows > 24 ? 5 : 1;
    for (int32_t row = 0; row < num_rows; row += rows) {
      text(kLeft - 7, top + (row + 0.5) * cell.height + 4, "e", row == 0 ? "layer 0" : std::to_string(row));
    }
    if (panel.bars.empty()) return;
    text(right + kBarGap, top - 20, "t", panel.bar_title);
    text(right + kBarGap, top - 5, "", "0");
    text(right + kBarGap + kBarWidth, top - 5, "e", fmt::format("{:g}", panel.bar_full));
    line(right + kBarGap + kBarWidth, top, right + kBarGap + kBarWidth, bottom);
    line(right + kBarGap, top, right + kBarGap, bottom);
  }

  void legend(const HeatPanel& panel, int top) {
    constexpr int kSwatch = 30, kHeight = 12;
    for (int level = 0; level < kLevels; ++level) {
      const int x = kLeft + level * kSwatch;
      out += fmt::format("<path class=\"c{}\" d=\"M{} {}h{}v{}h-{}z\"/>\n", level, x, top, kSwatch, kHeight, kSwatch);
      if (level % 2 != 0) continue;
      const double times = std::pow(panel.level_ratio, level - kMeanLevel);
      text(x + kSwatch / 2, top + kHeight + 13, "m", level == kMeanLevel ? "mean" : fmt::format("{:.2g} x", times));
    }
    const int x = kLeft + kLevels * kSwatch + 24;
    out += fmt::format("<path class=\"n\" d=\"M{} {}h{}v{}h-{}z\"/>\n", x, top, kSwatch, kHeight, kSwatch);
    text(x + kSwatch + 8, top + 10, "", "layer without load");
  }

 private:
  void line(double x1, double y1, double x2, double y2) {
    out += fmt::format("<path class=\"g\" d=\"M{:g} {:g}L{:g} {:g}\"/>\n", x1, y1, x2, y2);
  }
};

std::string draw(const HeatMap& map, bool titled) {
  Drawing drawing;
  int y = 8, width = 0;
  if (titled) {
    drawing.text(kLeft, 20, "t", map.title);
    drawing.text(kLeft, 36, "", map.subtitle);
    y = 50;
  }
  for (const HeatPanel& panel : map.panels) {
    const Cell cell = cell_of(panel, map.num_rows);
    const int top = y + kTop;
    drawing.text(kLeft, y + 12, "t", panel.title);
    drawing.legend(panel, y + 22);
    for (int32_t row = 0; row < map.num_rows; ++row) drawing.row(panel, row, cell, top);
    drawing.axes(panel, map.num_rows, cell, top);
    y = top + map.num_rows * cell.height + kGap;
    width = std::max(width, kLeft + cell.width * panel.num_columns + kBarGap + kBarWidth + kRight);
  }
  width = std::max(width, kLeft + 640);
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"heat\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" "
      "role=\"img\" aria-label=\"{2}\">\n<style>\n{3}</style>\n"
      "<defs><pattern id=\"none\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\">"
      "<path d=\"M0 6L6 0\" stroke=\"var(--faint)\" stroke-width=\".6\" opacity=\".6\"/></pattern></defs>\n{4}</svg>\n",
      width, y, escape_html(map.title), style(), drawing.out);
}

}  // namespace

std::string grouped(int64_t number) {
  std::string digits = std::to_string(number);
  for (int64_t at = int64_t(digits.size()) - 3; at > (number < 0 ? 1 : 0); at -= 3) digits.insert(size_t(at), ",");
  return digits;
}

std::string heat_map_svg(const HeatMap& map) { return draw(map, true); }

std::string heat_map_html(const HeatMap& map) {
  std::string figures;
  for (const auto& [number, caption] : map.figures) {
    figures += fmt::format("<div><b>{}</b><span>{}</span></div>\n", escape_html(number), escape_html(caption));
  }
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"color-scheme\" content=\"light dark\">\n<title>{0}</title>\n<style>\n"
      ":root{{--ink:#1d2126;--dim:#6b7280;--paper:#ffffff}}\n"
      "@media (prefers-color-scheme:dark){{:root{{--ink:#e6e8eb;--dim:#9099a4;--paper:#15181c}}}}\n"
      "body{{margin:24px 32px;font:14px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--paper)}}\n"
      "h1{{font-size:20px;margin:0}}\np{{margin:2px 0 0;color:var(--dim)}}\n"
      ".figures{{display:flex;flex-wrap:wrap;gap:8px 40px;margin:18px 0 12px}}\n"
      ".figures b{{display:block;font-size:22px;font-weight:600;font-variant-numeric:tabular-nums}}\n"
      ".figures span{{color:var(--dim)}}\n.map{{overflow-x:auto}}\n</style>\n</head>\n<body>\n"
      "<h1>{0}</h1>\n<p>{1}</p>\n<div class=\"figures\">\n{2}</div>\n<div "
      "class=\"map\">\n{3}</div>\n</body>\n</html>\n",
      escape_html(map.title), escape_html(map.subtitle), figures, draw(map, false));
}

}  // namespace tandem::workflow
