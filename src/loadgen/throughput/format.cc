#include <fmt/format.h>

#include <cmath>

#include "base/json.h"
#include "loadgen/throughput.h"

namespace tandem::loadgen {
namespace {

const char* verdict_name(Verdict verdict) {
  switch (verdict) {
    case Verdict::kValid: return "valid";
    case Verdict::kUnchecked: return "unchecked";
    case Verdict::kInvalid: return "invalid";
  }
  return "";
}

const char* doubt_name(Doubt doubt) {
  switch (doubt) {
    case Doubt::kNothingMeasured: return "nothing_measured";
    case Doubt::kRanksMissing: return "ranks_missing";
    case Doubt::kUnequalWindows: return "unequal_windows";
    case Doubt::kZeroThroughput: return "zero_throughput";
    case Doubt::kAnotherProfile: return "another_profile";
    case Doubt::kRanksWaited: return "ranks_waited";
    case Doubt::kFormulasDiffer: return "formulas_differ";
  }
  return "";
}

// Whole numbers in groups of three: 3,938.
std::string thousands(double value) {
  std::string digits = fmt::format("{:.0f}", value);
  const size_t sign = digits.starts_with('-') ? 1 : 0;
  for (size_t at = digits.size(); at > sign + 3;) digits.insert(at -= 3, ",");
  return digits;
}

std::string count_of(int32_t count, const char* what) {
  return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
}

std::string step_line(const ThroughputReport& report) {
  if (!report.step) return fmt::format("not known: no step time ({} a step)", thousands(report.tokens_per_step));
  if (!report.by_step)
    return fmt::format("not known: no batch size (a step takes {:.1f} ms)", report.step->seconds * 1e3);
  return fmt::format("{} tok/s/GPU = {} {} / {:.1f} ms / {}; step time: {}", thousands(*report.by_step),
                     thousands(report.tokens_per_step),
                     report.phase == ServingPhase::kDecode ? "running" : "new tokens", report.step->seconds * 1e3,
                     count_of(report.num_gpus, "GPU"), report.step->how);
}

std::string counter_line(const ThroughputReport& report) {
  if (!report.by_counters) return "not known: no rate was read";
  return fmt::format("{} tok/s/GPU = {} tok/s / {}", thousands(*report.by_counters), thousands(*report.tokens_per_s),
                     count_of(report.num_gpus, "GPU"));
}

std::string difference_line(const ThroughputReport& report) {
  if (!report.difference) return "not known: one of the two is missing";
  std::string line = fmt::format("{:+.1f}% (by step against by counters)", *report.difference * 100);
  if (!report.step->independent) line += ", though both come from the same rates";
  return line;
}

std::string verdict_line(const ThroughputReport& report) {
  std::string line = verdict_name(report.verdict);
  if (report.verdict == Verdict::kUnchecked) line += ": nothing independent to compare with";
  std::string separator = ": ";
  for (const Finding& finding : report.findings) {
    line += separator + finding.text;
    separator = "; ";
  }
  return line;
}

template <class T>
json::Value or_null(const std::optional<T>& value) {
  return value ? json::Value(*value) : json::Value(nullptr);
}

json::Object to_json(const ThroughputReport& report) {
  json::Object out;
  out["phase"] = to_string(report.phase);
  out["num_ranks"] = report.num_ranks;
  out["num_gpus"] = report.num_gpus;
  out["tokens_per_step"] = report.tokens_per_step;
  out["step_ms"] = report.step ? json::Value(report.step->seconds * 1e3) : json::Value(nullptr);
  out["step_source"] = report.step ? json::Value(report.step->how) : json::Value(nullptr);
  out["busy_share"] = report.step ? json::Value(report.step->busy_share) : json::Value(nullptr);
  out["tokens_per_s"] = or_null(report.tokens_per_s);
  out["by_step"] = or_null(report.by_step);
  out["by_counters"] = or_null(report.by_counters);
  out["difference"] = or_null(report.difference);
  out["verdict"] = verdict_name(report.verdict);
  json::Array findings, notes;
  for (const Finding& finding : report.findings) {
    findings.push_back(json::Object{{"doubt", doubt_name(finding.doubt)}, {"text", finding.text}});
  }
  for (const std::string& note : report.notes) notes.emplace_back(note);
  out["findings"] = std::move(findings);
  out["notes"] = std::move(notes);
  return out;
}

}  // namespace

std::string format_throughput(const std::vector<ThroughputReport>& reports) {
  std::string out;
  for (const ThroughputReport& report : reports) {
    out += fmt::format("{} ({})\n", to_string(report.phase), count_of(report.num_ranks, "rank"));
    out += fmt::format("  by step      {}\n", step_line(report));
    out += fmt::format("  by counters  {}\n", counter_line(report));
    out += fmt::format("  difference   {}\n", difference_line(report));
    out += fmt::format("  verdict      {}\n", verdict_line(report));
    for (const std::string& note : report.notes) out += fmt::format("  note         {}\n", note);
  }
  out +=
      "by step is how fast the engine is while it steps with this batch, which published figures mean;\n"
      "by counters is what came out in the window, stalls included, which users got.\n";
  return out;
}

std::string throughput_json(const std::vector<ThroughputReport>& reports) {
  json::Array out;
  for (const ThroughputReport& report : reports) out.push_back(to_json(report));
  return json::dump(out) + "\n";
}

}  // namespace tandem::loadgen
