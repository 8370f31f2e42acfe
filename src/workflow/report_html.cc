#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "workflow/heat_map.h"
#include "workflow/plot.h"
#include "workflow/report.h"

namespace tandem::workflow {
namespace {

// Eight hues that stay apart for readers with colour-blindness, one set per background.
constexpr std::string_view kStyle = R"(
:root{color-scheme:light dark;--ink:#1d2126;--dim:#636b76;--paper:#fff;--card:#f5f6f8;--rule:#d9dde3;
--good:#0b6b3a;--good-bg:#e3f4ea;--bad:#9c1c1c;--bad-bg:#fbe7e6;--band:#e9edf3;--band-strong:#d5e3f7;
--c0:#1f5fa8;--c1:#c2571a;--c2:#2e7d4f;--c3:#8a3f8f;--c4:#6b6b1f;--c5:#b3325e;--c6:#2b8a8f;--c7:#6d5a4a}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8eb;--dim:#9aa3ae;--paper:#14171b;--card:#1c2127;--rule:#333a43;
--good:#6fd39b;--good-bg:#12301f;--bad:#ff9b93;--bad-bg:#3a1716;--band:#20262e;--band-strong:#213654;
--c0:#6aaef5;--c1:#f29a5c;--c2:#6ccb93;--c3:#cf8fd4;--c4:#c6c463;--c5:#f287ab;--c6:#66c9ce;--c7:#bfa792}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:28px 32px 60px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:23px;margin:0}h2{font-size:19px;margin:40px 0 4px}h3{font-size:15px;margin:26px 0 4px}
p{margin:3px 0}.dim{color:var(--dim)}.none{color:var(--dim);font-style:italic}
.verdict{margin:18px 0;padding:14px 18px;border-radius:8px}.verdict b{font-size:18px}
.valid{background:var(--good-bg);color:var(--good)}.invalid{background:var(--bad-bg);color:var(--bad)}
.verdict ul{margin:8px 0 0;padding-left:20px}
.tiles{display:flex;flex-wrap:wrap;gap:12px;margin:14px 0}
.tile{background:var(--card);border-radius:8px;padding:10px 16px;min-width:150px}
.tile b{display:block;font-size:22px;font-weight:600;font-variant-numeric:tabular-nums}
.tile span{color:var(--dim);font-size:13px}
table{border-collapse:collapse;margin:8px 0;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:3px 14px 3px 0;border-bottom:1px solid var(--rule)}
th{color:var(--dim);font-weight:500}th:first-child,td:first-child,td.left,th.left{text-align:left}
.wide{overflow-x:auto}
.plot{width:100%;height:auto;max-width:1000px;font:12px system-ui,sans-serif;display:block}
.plot text{fill:var(--dim)}.plot .end{text-anchor:end}.plot .mid{text-anchor:middle}
.plot .grid{stroke:var(--rule)}.plot .line{fill:none;stroke-width:1.8}.plot .band{fill:var(--band)}
.plot .strong{fill:var(--band-strong)}.plot .band-name{font-size:11px}
.parts{display:grid;grid-template-columns:max-content 1fr max-content;gap:4px 12px;align-items:center;max-width:900px}
.parts div{height:14px;background:var(--c0);border-radius:3px;min-width:1px}
pre{background:var(--card);border-radius:8px;padding:12px 14px;overflow-x:auto;font-size:13px}
details{margin:10px 0}summary{cursor:pointer;color:var(--dim)}
)";

std::string series_style() {
  std::string out;
  for (int i = 0; i < 8; ++i)
    out += fmt::format(".plot .s{0}{{stroke:var(--c{0})}}.plot .f{0}{{fill:var(--c{0})}}\n", i);
  return out;
}

std::string tile(std::string_view value, std::string_view caption) {
  return fmt::format("<div class=\"tile\"><b>{}</b><span>{}</span></div>\n", escape_html(value), escape_html(caption));
}

std::string verdict_block(const ReproduceReport& report) {
  const std::vector<Reason> reasons = report.reasons();
  if (reasons.empty()) {
    return "<div class=\"verdict valid\"><b>valid</b><p>Every check passed: these numbers may be quoted.</p></div>\n";
  }
  std::string out = "<div class=\"verdict invalid\"><b>invalid</b><ul>\n";
  for (const Reason& reason : reasons) {
    out += fmt::format("<li><code>{}</code> {}</li>\n", escape_html(reason.code), escape_html(reason.detail));
  }
  return out + "</ul></div>\n";
}

const char* unit_of(Role role) { return role == Role::kPrefill ? "input tokens/s/GPU" : "output tokens/s/GPU"; }

std::string tiles(const HalfReport& half) {
  std::string out = "<div class=\"tiles\">\n";
  const auto add = [&](const Measurement& measurement, const std::string& when) {
    const WindowFigures& window = measurement.evidence.window;
    out += tile(fmt::format("{:.1f}", window.per_rank_by_counters), std::string(unit_of(half.role)) + when);
    out += tile(fmt::format("{:.1f}", window.per_rank_by_steps),
                fmt::format("by {} and step time{}",
                            half.role == Role::kPrefill ? "tokens of a step" : "running requests", when));
    out += tile(fmt::format("{:.2f} ms", window.step_ms), "a step" + when);
  };
  if (half.before) add(*half.before, "");
  if (half.after) add(*half.after, ", rebalanced");
  return out + "</div>\n";
}

std::vector<Band> bands_of(const HalfReport& half) {
  std::vector<Band> bands;
  for (const StageRecord& stage : half.stages) {
    bands.push_back({stage.begin_s, stage.end_s, stage.name, stage.name.starts_with("measure")});
  }
  return bands;
}

uint64_t tokens_of(const Sample& sample, Role role) {
  uint64_t tokens = 0;
  for (const InstanceSample& instance : sample.instances) {
    if (instance.role != role) continue;
    for (const RankSample& rank : instance.ranks) {
      tokens += role == Role::kPrefill ? rank.prompt_tokens : rank.generated_tokens;
    }
  }
  return tokens;
}

// Between samples at least a second apart, so that single steps do not show as noise.
Series rate_series(const HalfReport& half, Role role) {
  Series series{std::string(role_name(role)) + (role == Role::kPrefill ? " (input)" : " (output)"), {}};
  const Sample* from = nullptr;
  for (const Sample& sample : half.samples) {
    if (from != nullptr && sample.at_s - from->at_s < 1) continue;
    if (from != nullptr) {
      const uint64_t before = tokens_of(*from, role), now = tokens_of(sample, role);
      if (now >= before) series.points.emplace_back(sample.at_s, double(now - before) / (sample.at_s - from->at_s));
    }
    from = &sample;
  }
  return series;
}

// One line per rank of the role.
std::vector<Series> running_series(const HalfReport& half) {
  std::vector<Series> lines;
  for (const Sample& sample : half.samples) {
    size_t rank_index = 0;
    for (const InstanceSample& instance : sample.instances) {
      if (instance.role != half.role) continue;
      for (const RankSample& rank : instance.ranks) {
        if (lines.size() <= rank_index) lines.push_back({fmt::format("rank {}", rank_index), {}});
        lines[rank_index++].points.emplace_back(sample.at_s, double(rank.running));
      }
    }
  }
  return lines;
}

std::string breakdown(const Measurement& measurement) {
  if (!measurement.evidence.trace || measurement.breakdown.empty()) return "";
  double most = 0;
  for (const StepPart& part : measurement.breakdown) most = std::max(most, part.ms_per_step);
  std::string out = fmt::format(
      "<h3>Where a step's time goes</h3>\n<p class=\"dim\">{} profiled steps, {:.2f} ms each, rank 0; {}</p>\n"
      "<div class=\"parts\">\n",
      measurement.evidence.trace->num_steps, measurement.evidence.trace->step_ms, escape_html(measurement.trace_file));
  for (const StepPart& part : measurement.breakdown) {
    out += fmt::format("<span>{}</span><div style=\"width:{:.1f}%\"></div><span>{:.3f} ms, {:.1f} %</span>\n",
                       escape_html(part.name), most > 0 ? part.ms_per_step / most * 100 : 0, part.ms_per_step,
                       part.ms_per_step / std::max(measurement.evidence.trace->step_ms, 1e-9) * 100);
  }
  return out + "</div>\n";
}

std::string expert_maps(const HalfReport& half) {
  HeatMap map;
  map.title = "Expert load per rank";
  const auto add = [&](const std::optional<Measurement>& measurement, const char* when) {
    if (!measurement || !measurement->experts) return;
    const ExpertFigures& experts = *measurement->experts;
    map.num_rows = experts.num_layers;
    HeatPanel panel;
    panel.title = fmt::format("{}: balancedness {:.4f}", when, experts.balancedness);
    panel.column_name = "rank";
    panel.num_columns = experts.num_ranks;
    panel.amounts = experts.rank_loads;
    panel.level_ratio = 1.05;
    map.panels.push_back(std::move(panel));
  };
  add(half.before, "before");
  add(half.after, "after rebalancing");
  if (map.panels.empty()) return "";
  map.subtitle = "one row per layer, one cell per rank; colours compare with the layer's mean, 5 % a level";
  return "<h3>Expert load per rank</h3>\n<div class=\"wide\">\n" + heat_map_svg(map) + "</div>\n";
}

std::string spread_row(std::string_view name, const loadgen::Spread& spread) {
  return fmt::format(
      "<tr><td>{}</td><td>{:.2f}</td><td>{:.2f}</td><td>{:.2f}</td><td>{:.2f}</td><td>{:.2f}</td></tr>\n",
      escape_html(name), spread.mean, spread.median, spread.p95, spread.p99, spread.max);
}

std::string latency(const HalfReport& half) {
  std::vector<std::pair<std::string, std::vector<double>>> values;
  std::string rows;
  const auto add = [&](const std::optional<Measurement>& measurement, const std::string& when) {
    if (!measurement) return;
    rows += spread_row("time to first token, ms" + when, measurement->ttft);
    rows += spread_row("inter-token latency, ms" + when, measurement->itl);
    values.emplace_back(when.empty() ? "before" : "rebalanced", measurement->itls_ms);
  };
  add(half.before, "");
  add(half.after, ", rebalanced");
  return "<h3>Latency</h3>\n<table><tr><th></th><th>mean</th><th>median</th><th>p95</th><th>p99</th><th>max</th></"
         "tr>\n" +
         rows + "</table>\n" + histogram(make_histogram("Inter-token latency", "ms", values));
}

std::string stage_table(const HalfReport& half) {
  std::string out =
      "<h3>Stages</h3>\n<table><tr><th>stage</th><th>from, s</th><th>to, s</th><th class=\"left\">found</th></tr>\n";
  for (const StageRecord& stage : half.stages) {
    out += fmt::format("<tr><td>{}{}</td><td>{:.1f}</td><td>{:.1f}</td><td class=\"left\">{}</td></tr>\n",
                       escape_html(stage.name), stage.failed ? " (failed)" : "", stage.begin_s, stage.end_s,
                       escape_html(stage.note));
  }
  return out + "</table>\n";
}

std::string half_section(const HalfReport& half) {
  std::string out = fmt::format("<h2>{}</h2>\n<p class=\"dim\">{}; {}</p>\n", escape_html(half.name),
                                escape_html(half.split), escape_html(half.load));
  out += tiles(half);
  LinePlot rate{"Tokens per second", "seconds", "tokens/s", {}, bands_of(half)};
  for (Role role : {Role::kPrefill, Role::kDecode, Role::kCombined}) {
    Series series = rate_series(half, role);
    const bool any =
        std::any_of(series.points.begin(), series.points.end(), [](auto& point) { return point.second > 0; });
    if (any) rate.series.push_back(std::move(series));
  }
  out += "<h3>Throughput over time</h3>\n" + line_plot(rate);
  out += "<h3>Running requests per rank</h3>\n" +
         line_plot({"Running requests", "seconds", "requests", running_series(half), bands_of(half)});
  out += latency(half);
  if (half.before) out += breakdown(*half.before);
  out += expert_maps(half);
  return out + stage_table(half);
}

}  // namespace

std::string report_html(const ReproduceReport& report) {
  std::string out = "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
  out += "<meta name=\"viewport\" content=\"width=device-width\">\n<title>Tandem reproduce: ";
  out += report.valid() ? "valid" : "invalid";
  out += "</title>\n<style>" + std::string(kStyle) + series_style() + "</style>\n</head>\n<body>\n";
  out += fmt::format("<h1>Throughput, measured and judged</h1>\n<p class=\"dim\">tandem {} on {}, {}, {:.0f} s</p>\n",
                     escape_html(report.version), escape_html(report.host), escape_html(report.started_utc),
                     report.seconds);
  out += verdict_block(report);
  for (const HalfReport& half : report.halves) out += half_section(half);
  out += "<h2>Configuration</h2>\n<table>\n";
  for (const auto& [name, value] : report.configuration) {
    out += fmt::format("<tr><td>{}</td><td class=\"left\">{}</td></tr>\n", escape_html(name), escape_html(value));
  }
  out += "</table>\n<h2>Commands</h2>\n<p class=\"dim\">The same by hand.</p>\n<pre>";
  for (const std::string& command : report.commands) out += escape_html(command) + "\n";
  return out + "</pre>\n</body>\n</html>\n";
}

}  // namespace tandem::workflow
