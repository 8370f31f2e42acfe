#include <fmt/format.h>

#include <algorithm>

#include "loadgen/throughput/log_reader.h"

namespace tandem::loadgen {
namespace {

// Stamps have whole seconds: shorter spans say nothing about a rate.
constexpr double kShortestSpanSeconds = 5;

const BatchSums* find_profile(const PhaseLines& lines, const std::vector<std::string>& traces, bool& other) {
  if (lines.profiles.empty()) return nullptr;
  other = !traces.empty();
  for (const auto& [id, sums] : lines.profiles) {
    for (const std::string& path : traces) {
      if (id.empty() || path.find(id) == std::string::npos) continue;
      other = false;
      return &sums;
    }
  }
  // Ids are compared only where both sides have one.
  if (lines.profiles.back().first.empty()) other = false;
  return &lines.profiles.back().second;
}

std::optional<double> rate_of(const BatchSum& sum) {
  if (sum.time_s > 0) return sum.timed_tokens / sum.time_s;
  return std::nullopt;
}

// Combined servers give no rate of prefill: tokens over stamps, the last batch's left out with its time.
std::optional<double> rate_by_stamps(const BatchSum& sum) {
  const double span = sum.last_s - sum.first_s;
  if (sum.lines < 2 || span < kShortestSpanSeconds) return std::nullopt;
  return sum.tokens / span * double(sum.lines - 1) / double(sum.lines);
}

struct LeftOut {
  uint64_t in_profile = 0, after_profile = 0, after_sleep = 0, small = 0;
};

void add_notes(const LogSummary& log, const LeftOut& left, PhaseMeasure& measure) {
  const auto note = [&](uint64_t count, std::string_view what) {
    if (count > 0) measure.notes.push_back(fmt::format("{}: {} {}", log.path, count, what));
  };
  note(left.small, "lines of smaller batches left out (ramp and drain; --window takes all lines within it)");
  note(left.in_profile, "lines written while a profiler ran: batch sizes count, rates do not");
  note(left.after_profile, "lines right after a profile: rates left out");
  note(left.after_sleep, "lines right after a slow_down sleep left out");
  note(log.before_ready, "batch lines before the server was ready left out");
  if (log.garbled > 0) note(log.garbled, "lines could not be read, the first is " + log.first_garbled);
}

}  // namespace

void add_log(const LogSummary& log, const std::vector<std::string>& traces, double min_share, PhaseMeasure& measure) {
  LeftOut left;
  bool other_profile = false;
  double step_time = 0;
  size_t timed_ranks = 0, ranks = 0;
  for (const auto& [number, lines] : log.ranks) {
    const PhaseLines& phase = measure.phase == ServingPhase::kDecode ? lines.decode : lines.prefill;
    if (phase.undisturbed.empty() && phase.profiles.empty()) continue;
    ranks += 1;
    bool other = false;
    const BatchSums* const profile = find_profile(phase, traces, other);
    other_profile |= other;
    const BatchSum steady = phase.undisturbed.steady(min_share);
    const BatchSum sizes = profile ? profile->steady(min_share) : steady;
    RankThroughput rank{.source = log.path, .rank = number};
    if (sizes.lines > 0) rank.tokens_per_step = sizes.tokens / double(sizes.lines);
    rank.tokens_per_s = rate_of(steady);
    if (!rank.tokens_per_s && measure.phase == ServingPhase::kPrefill) rank.tokens_per_s = rate_by_stamps(steady);
    if (rank.tokens_per_s) rank.window_s = std::pair(steady.first_s, steady.last_s);
    if (steady.timed_lines > 0) {
      step_time += steady.time_s / double(steady.timed_lines);
      timed_ranks += 1;
    }
    left.in_profile += lines.in_profile;
    left.after_profile += lines.after_profile;
    left.after_sleep += lines.after_sleep;
    left.small += phase.undisturbed.all().lines - steady.lines;
    measure.ranks.push_back(std::move(rank));
  }
  if (ranks == 0) return;
  if (other_profile) {
    measure.findings.push_back(
        {Doubt::kAnotherProfile, fmt::format("{} knows no profile with the traces' id", log.path)});
  }
  if (!measure.step && timed_ranks > 0) {
    measure.step = StepTime{
        .seconds = step_time / double(timed_ranks), .how = "log, batch size over its own rate", .independent = false};
  }
  add_notes(log, left, measure);
}

}  // namespace tandem::loadgen
