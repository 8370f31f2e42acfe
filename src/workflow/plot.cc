#include "workflow/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace tandem::workflow {
namespace {

constexpr int kWidth = 860, kHeight = 250, kLeft = 64, kRight = 12, kTop = 30, kBottom = 40;
constexpr int kColours = 8;
constexpr int kBins = 40;

double largest_y(const std::vector<Series>& series) {
  double top = 0;
  for (const Series& line : series) {
    for (const auto& [x, y] : line.points) top = std::max(top, y);
  }
  return top;
}

std::string number(double value) {
  if (value != 0 && std::abs(value) < 10) return fmt::format("{:.3g}", value);
  std::string text = fmt::format("{:.0f}", value);
  for (int at = int(text.size()) - 3; at > (value < 0 ? 1 : 0); at -= 3) text.insert(size_t(at), ",");
  return text;
}

// From values to places on the drawing.
struct Frame {
  double x_low = 0, x_high = 1, y_high = 1;
  double x(double value) const { return kLeft + (value - x_low) / (x_high - x_low) * (kWidth - kLeft - kRight); }
  double y(double value) const { return kHeight - kBottom - value / y_high * (kHeight - kTop - kBottom); }
};

class Drawing {
 public:
  Drawing(std::string_view title, const Frame& frame) : frame_(frame) {
    out_ = fmt::format("<svg class=\"plot\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n", kWidth, kHeight,
                       escape_html(title));
  }

  void text(double x, double y, const char* css, std::string_view words) {
    out_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"{}\">{}</text>\n", x, y, css, escape_html(words));
  }

  void axes(const std::vector<double>& x_ticks, std::string_view x_name, std::string_view y_name, bool y_percent) {
    for (double value : ticks(frame_.y_high, 4)) {
      if (value > frame_.y_high * 1.0001) break;
      const double y = frame_.y(value);
      out_ += fmt::format("<path class=\"grid\" d=\"M{} {:.1f}H{}\"/>\n", kLeft, y, kWidth - kRight);
      text(kLeft - 8, y + 4, "end", y_percent ? fmt::format("{:.3g} %", value * 100) : number(value));
    }
    for (double value : x_ticks) {
      if (value < frame_.x_low || value > frame_.x_high) continue;
      text(frame_.x(value), kHeight - kBottom + 17, "mid", number(value));
    }
    text((kLeft + kWidth - kRight) / 2.0, kHeight - 6, "mid", x_name);
    text(kLeft, 14, "", y_name);
  }

  void bands(const std::vector<Band>& bands) {
    for (const Band& band : bands) {
      const double from = frame_.x(std::max(band.begin, frame_.x_low)),
                   to = frame_.x(std::min(band.end, frame_.x_high));
      if (to <= from) continue;
      out_ += fmt::format("<path class=\"{}\" d=\"M{:.1f} {}H{:.1f}V{}H{:.1f}z\"><title>{}</title></path>\n",
                          band.strong ? "band strong" : "band", from, kTop, to, kHeight - kBottom, from,
                          escape_html(band.name));
      // About seven units a letter; a name that does not fit is still shown on hover.
      if (to - from > 7.0 * double(band.name.size())) text((from + to) / 2, kTop + 12, "mid band-name", band.name);
    }
  }

  void line(const Series& series, int colour) {
    std::string path;
    for (const auto& [x, y] : series.points) {
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", frame_.x(x), frame_.y(y));
    }
    out_ += fmt::format("<path class=\"line s{}\" d=\"{}\"><title>{}</title></path>\n", colour % kColours, path,
                        escape_html(series.name));
  }

  void bar(double x, double width, double y, int colour, std::string_view words) {
    const double left = frame_.x(x), right = frame_.x(x + width);
    out_ += fmt::format("<path class=\"bar f{}\" d=\"M{:.1f} {}V{:.1f}H{:.1f}V{}z\"><title>{}</title></path>\n",
                        colour % kColours, left, kHeight - kBottom, frame_.y(y), right, kHeight - kBottom,
                        escape_html(words));
  }

  // Names of the series, from the right edge leftwards.
  void legend(const std::vector<Series>& series) {
    if (series.size() < 2) return;
    double x = kWidth - kRight;
    for (size_t i = series.size(); i-- > 0;) {
      x -= 7.0 * double(series[i].name.size()) + 26;
      out_ += fmt::format("<path class=\"bar f{}\" d=\"M{:.1f} 6h12v9h-12z\"/>\n", i % kColours, x);
      text(x + 17, 14, "", series[i].name);
    }
  }

  std::string finish() { return out_ + "</svg>\n"; }

 private:
  const Frame& frame_;
  std::string out_;
};

std::string nothing(std::string_view title) {
  return fmt::format("<p class=\"none\">{}: nothing was measured.</p>\n", escape_html(title));
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '&': out += "&amp;"; break;
      case '"': out += "&quot;"; break;
      default: out.push_back(uint8_t(c) < ' ' && c != '\n' ? ' ' : c);
    }
  }
  return out;
}

std::vector<double> ticks(double top, int count) {
  if (!(top > 0)) return {0};
  const double rough = top / count, power = std::pow(10, std::floor(std::log10(rough)));
  const double lead = rough / power;
  const double step = power * (lead <= 1 ? 1 : lead <= 2 ? 2 : lead <= 5 ? 5 : 10);
  std::vector<double> out;
  for (int i = 0; double(i - 1) * step < top; ++i) out.push_back(double(i) * step);
  return out;
}

std::string line_plot(const LinePlot& plot) {
  Frame frame;
  bool any = false;
  for (const Series& series : plot.series) {
    if (series.points.size() < 2) continue;
    const double low = series.points.front().first, high = series.points.back().first;
    frame.x_low = any ? std::min(frame.x_low, low) : low;
    frame.x_high = any ? std::max(frame.x_high, high) : high;
    any = true;
  }
  if (!any || frame.x_high <= frame.x_low) return nothing(plot.title);
  frame.y_high = std::max(largest_y(plot.series) * 1.08, 1e-9);
  Drawing drawing(plot.title, frame);
  drawing.bands(plot.bands);
  drawing.axes(ticks(frame.x_high, 8), plot.x_name, plot.y_name, false);
  for (size_t i = 0; i < plot.series.size(); ++i) {
    if (plot.series[i].points.size() >= 2) drawing.line(plot.series[i], int(i));
  }
  drawing.legend(plot.series);
  return drawing.finish();
}

std::string histogram(const Histogram& plot) {
  Frame frame;
  frame.x_high = 0;
  for (const Series& series : plot.series) {
    if (!series.points.empty()) frame.x_high = std::max(frame.x_high, series.points.back().first + plot.bin_width);
  }
  const double top = largest_y(plot.series);
  if (!(frame.x_high > 0) || !(top > 0)) return nothing(plot.title);
  frame.y_high = top * 1.08;
  Drawing drawing(plot.title, frame);
  drawing.axes(ticks(frame.x_high, 8), plot.x_name, "share of the tokens", true);
  const double width = plot.bin_width / double(plot.series.size());
  for (size_t i = 0; i < plot.series.size(); ++i) {
    for (const auto& [edge, share] : plot.series[i].points) {
      if (share <= 0) continue;
      drawing.bar(
          edge + double(i) * width, width, share, int(i),
          fmt::format("{}: {:.3g} to {:.3g}: {:.2f} %", plot.series[i].name, edge, edge + plot.bin_width, share * 100));
    }
  }
  drawing.legend(plot.series);
  return drawing.finish();
}

Histogram make_histogram(std::string title, std::string x_name,
                         const std::vector<std::pair<std::string, std::vector<double>>>& values) {
  Histogram plot{std::move(title), std::move(x_name), {}, 1};
  std::vector<double> all;
  for (const auto& [name, list] : values) all.insert(all.end(), list.begin(), list.end());
  if (all.empty()) return plot;
  const size_t at = std::min(all.size() - 1, size_t(double(all.size()) * 0.995));
  std::nth_element(all.begin(), all.begin() + ptrdiff_t(at), all.end());
  plot.bin_width = std::max(all[at], 1e-9) / kBins;
  for (const auto& [name, list] : values) {
    Series series{name, {}};
    std::vector<double> counts(kBins, 0.0);
    for (double value : list) {
      const double bin = std::clamp(value / plot.bin_width, 0.0, double(kBins - 1));
      counts[size_t(bin)] += 1;
    }
    for (int bin = 0; bin < kBins; ++bin) {
      series.points.emplace_back(bin * plot.bin_width, list.empty() ? 0 : counts[size_t(bin)] / double(list.size()));
    }
    plot.series.push_back(std::move(series));
  }
  return plot;
}

}  // namespace tandem::workflow
