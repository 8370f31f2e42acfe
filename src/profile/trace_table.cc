#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "profile/trace_reader.h"

namespace tandem::profile {
namespace {

struct Row {
  std::string name;
  int64_t count = 0;
  double total_us = 0, flops = 0, bytes = 0;
};

bool is_operator(const TraceEvent& event) {
  return event.phase == 'X' && (event.category == "cpu_op" || event.category == "kernel");
}
// Time in which the rank did nothing but wait for others.
bool is_wait(const TraceEvent& event) { return event.phase == 'X' && event.name.ends_with(" wait"); }
bool is_step(const TraceEvent& event) { return event.phase == 'X' && event.category == "step" && event.name == "step"; }

// Shapes without the rows, which change from step to step: one line per matrix.
std::string row_name(const TraceEvent& event) {
  if (event.dims.size() < 2) return event.name;
  return fmt::format("{} {}", event.name, fmt::join(event.dims.begin() + 1, event.dims.end(), "x"));
}

std::string format_row(const Row& row, double all_us) {
  const auto rate = [&](double amount) {  // per microsecond, in units of 1e9 a second
    return row.total_us > 0 && amount > 0 ? fmt::format("{:.2f}", amount / row.total_us / 1e3) : std::string("-");
  };
  return fmt::format("{:<34} {:>8} {:>12.3f} {:>10.2f} {:>7.2f} {:>10} {:>10}\n", row.name, row.count,
                     row.total_us / 1e3, row.total_us / double(std::max<int64_t>(1, row.count)),
                     all_us > 0 ? 100 * row.total_us / all_us : 0, rate(row.flops), rate(row.bytes));
}

std::vector<Row> sorted(const std::map<std::string, Row>& rows) {
  std::vector<Row> all;
  for (const auto& [name, row] : rows) all.push_back(row);
  std::ranges::stable_sort(all, [](const Row& a, const Row& b) { return a.total_us > b.total_us; });
  return all;
}

std::string step_lines(const Trace& trace, double& all_us) {
  struct Steps {
    int64_t count = 0;
    double total_us = 0, least_us = 0, most_us = 0, tokens = 0;
  };
  std::map<std::string, Steps> kinds;
  std::set<int64_t> ranks;
  for (const TraceEvent& event : trace.events) {
    if (!is_step(event)) continue;
    ranks.insert(event.pid);
    Steps& steps = kinds[std::string(event.text("kind"))];
    steps.least_us = steps.count == 0 ? event.duration_us : std::min(steps.least_us, event.duration_us);
    steps.most_us = std::max(steps.most_us, event.duration_us);
    steps.count += 1;
    steps.total_us += event.duration_us;
    steps.tokens += event.number("num_tokens");
    all_us += event.duration_us;
  }
  std::string lines = fmt::format("ranks: {}\n", ranks.size());
  for (const auto& [kind, steps] : kinds) {
    lines += fmt::format("{} steps: {}, {:.3f} ms on average ({:.3f} to {:.3f}), {:.1f} tokens on average\n", kind,
                         steps.count, steps.total_us / double(steps.count) / 1e3, steps.least_us / 1e3,
                         steps.most_us / 1e3, steps.tokens / double(steps.count));
  }
  return lines;
}

}  // namespace

std::string operator_table(const Trace& trace) {
  double all_us = 0;
  std::string out = step_lines(trace, all_us);
  std::map<std::string, Row> operators, waits;
  Row together;
  for (const TraceEvent& event : trace.events) {
    if (!is_operator(event) && !is_wait(event)) continue;
    const std::string name = is_operator(event) ? row_name(event) : event.name;
    Row& row = (is_operator(event) ? operators : waits)[name];
    for (Row* sum : {&row, &together}) {
      sum->count += 1;
      sum->total_us += event.duration_us;
      sum->flops += event.number("flops");
      sum->bytes += event.number("bytes");
    }
    row.name = name;
  }
  if (trace.dropped_spans > 0) out += fmt::format("{} older spans did not fit\n", trace.dropped_spans);
  // A trace without steps (another program's): shares of what is listed.
  if (all_us == 0) all_us = together.total_us;
  out += fmt::format("\n{:<34} {:>8} {:>12} {:>10} {:>7} {:>10} {:>10}\n", "operator", "count", "total ms", "mean us",
                     "share %", "GFLOP/s", "GB/s");
  for (const Row& row : sorted(operators)) out += format_row(row, all_us);
  for (const Row& row : sorted(waits)) out += format_row(row, all_us);
  Row rest{.name = "everything else", .count = 0, .total_us = std::max(0.0, all_us - together.total_us)};
  rest.count = int64_t(rest.total_us > 0);
  if (rest.total_us > 0) out += format_row(rest, all_us);
  return out;
}

}  // namespace tandem::profile
