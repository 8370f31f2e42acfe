#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "loadgen/throughput.h"

namespace tandem::loadgen {
namespace {

// Whole seconds in a log's stamps, and lines that come a step apart.
constexpr double kStampSlackSeconds = 2.0;
constexpr double kWindowSlackShare = 0.1;
// Below this the ranks waited for requests rather than for each other.
constexpr double kBusyEnough = 0.9;

struct Sums {
  double tokens_per_step = 0, tokens_per_s = 0;
  size_t with_step = 0, with_rate = 0;
};

Sums sum(const std::vector<RankThroughput>& ranks) {
  Sums sums;
  for (const RankThroughput& rank : ranks) {
    sums.tokens_per_step += rank.tokens_per_step.value_or(0);
    sums.tokens_per_s += rank.tokens_per_s.value_or(0);
    sums.with_step += rank.tokens_per_step ? 1 : 0;
    sums.with_rate += rank.tokens_per_s ? 1 : 0;
  }
  return sums;
}

// Begins and ends may differ by the slack of stamps, or by a share of the longest window.
std::optional<std::string> unequal_windows(const std::vector<RankThroughput>& ranks) {
  const RankThroughput *earliest = nullptr, *latest = nullptr;
  double longest = 0, spread = 0;
  for (const bool end : {false, true}) {
    earliest = latest = nullptr;
    const auto edge = [end](const RankThroughput& rank) { return end ? rank.window_s->second : rank.window_s->first; };
    for (const RankThroughput& rank : ranks) {
      if (!rank.window_s) continue;
      longest = std::max(longest, rank.window_s->second - rank.window_s->first);
      if (!earliest || edge(rank) < edge(*earliest)) earliest = &rank;
      if (!latest || edge(rank) > edge(*latest)) latest = &rank;
    }
    if (!earliest) return std::nullopt;
    spread = std::max(spread, edge(*latest) - edge(*earliest));
  }
  if (spread <= std::max(kStampSlackSeconds, kWindowSlackShare * longest)) return std::nullopt;
  return fmt::format("the ranks' windows lie up to {:.0f} s apart (the longest has {:.0f} s)", spread, longest);
}

void find_faults(const PhaseMeasure& measure, const Sums& sums, ThroughputReport& report) {
  const auto add = [&](Doubt doubt, std::string text) { report.findings.push_back({doubt, std::move(text)}); };
  if (sums.with_step == 0 && sums.with_rate == 0) {
    return add(Doubt::kNothingMeasured, fmt::format("nothing was read of {}", to_string(measure.phase)));
  }
  const auto present = int32_t(measure.ranks.size());
  if (present < measure.expected_ranks) {
    add(Doubt::kRanksMissing, fmt::format("{} of {} ranks are there", present, measure.expected_ranks));
  }
  for (const auto& [with, what] : {std::pair(sums.with_step, "a batch size"), std::pair(sums.with_rate, "a rate")}) {
    if (with == 0 || with == measure.ranks.size()) continue;
    add(Doubt::kRanksMissing, fmt::format("{} of {} ranks have {}", with, present, what));
  }
  if (const auto text = unequal_windows(measure.ranks)) add(Doubt::kUnequalWindows, *text);
  if (report.by_step == 0.0) add(Doubt::kZeroThroughput, "no rank had anything in its steps");
  if (report.by_counters == 0.0) add(Doubt::kZeroThroughput, "no token was counted in the window");
  if (measure.step && measure.step->busy_share < kBusyEnough) {
    add(Doubt::kRanksWaited, fmt::format("steps ran in {:.0f}% of the time only: the load does not fill the server",
                                         measure.step->busy_share * 100));
  }
}

}  // namespace

const char* to_string(ServingPhase phase) { return phase == ServingPhase::kDecode ? "decode" : "prefill"; }

ThroughputReport judge(const PhaseMeasure& measure, int32_t num_gpus, double tolerance) {
  CHECK(num_gpus > 0);
  ThroughputReport report;
  report.phase = measure.phase;
  report.num_ranks = int32_t(measure.ranks.size());
  report.num_gpus = num_gpus;
  report.step = measure.step;
  report.findings = measure.findings;
  report.notes = measure.notes;
  const Sums sums = sum(measure.ranks);
  report.tokens_per_step = sums.tokens_per_step;
  if (measure.step && measure.step->seconds > 0 && sums.with_step > 0) {
    report.by_step = sums.tokens_per_step / measure.step->seconds / num_gpus;
  }
  if (sums.with_rate > 0) {
    report.tokens_per_s = sums.tokens_per_s;
    report.by_counters = sums.tokens_per_s / num_gpus;
  }
  if (report.by_step && report.by_counters && *report.by_counters > 0) {
    report.difference = *report.by_step / *report.by_counters - 1;
  }
  find_faults(measure, sums, report);
  if (report.difference && std::abs(*report.difference) > tolerance) {
    report.findings.push_back(
        {Doubt::kFormulasDiffer, fmt::format("the formulas differ by {:.1f}%, more than {:.0f}%: the speed of a step "
                                             "was not kept up over the window",
                                             *report.difference * 100, tolerance * 100)});
  }
  const bool compared = report.difference && measure.step->independent;
  report.verdict = !report.findings.empty() ? Verdict::kInvalid : compared ? Verdict::kValid : Verdict::kUnchecked;
  return report;
}

}  // namespace tandem::loadgen
