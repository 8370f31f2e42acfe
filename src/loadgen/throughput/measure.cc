#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "base/check.h"
#include "loadgen/throughput.h"
#include "loadgen/throughput/live.h"
#include "loadgen/throughput/log_reader.h"
#include "loadgen/throughput/trace_reader.h"

namespace tandem::loadgen {
namespace {

constexpr int32_t kMostGpus = 1 << 20;

struct Sources {
  std::vector<LogSummary> logs;
  std::vector<TraceSteps> traces;
  std::optional<LiveSample> first, last;
};

Result<Sources> read_sources(const ThroughputConfig& config, const ThroughputParts& parts) {
  Sources sources;
  ASSIGN_OR_RETURN(const LogWindow window, LogWindow::parse(config.window_begin, config.window_end));
  for (const std::string& path : config.logs) {
    ASSIGN_OR_RETURN(LogSummary log, read_log(path, window));
    sources.logs.push_back(std::move(log));
  }
  for (const std::string& path : config.traces) {
    ASSIGN_OR_RETURN(TraceSteps trace, read_trace(path));
    sources.traces.push_back(std::move(trace));
  }
  if (config.urls.empty()) return sources;
  ASSIGN_OR_RETURN(sources.first, sample_servers(config.urls, config.authorization, *parts.clock));
  if (!parts.wait(config.window)) return cancelled("stopped before the second sample");
  ASSIGN_OR_RETURN(sources.last, sample_servers(config.urls, config.authorization, *parts.clock));
  return sources;
}

// GPUs of a data-parallel rank: with attention tensor parallelism rank DPn begins at TP(n * size).
double gpus_per_rank(const Sources& sources, ServingPhase phase) {
  if (sources.first) {
    for (const RankCounters& rank : sources.first->ranks) {
      if (rank.combined || rank.main_phase == phase) return std::max(1.0, rank.gpus);
    }
  }
  for (const LogSummary& log : sources.logs) {
    for (const auto& [dp, lines] : log.ranks) {
      if (dp > 0 && lines.tp_rank > dp && lines.tp_rank % dp == 0) return double(lines.tp_rank / dp);
    }
  }
  return 1;
}

// Nodes of one server have different ranks in their logs. Where the same rank is in two files these are of different
// servers, each with all ranks up to its highest.
int32_t ranks_by_number(const std::vector<RankThroughput>& ranks) {
  std::set<int32_t> numbers;
  std::map<std::string, int32_t> most;
  bool twice = false;
  for (const RankThroughput& rank : ranks) {
    twice |= !numbers.insert(rank.rank).second;
    int32_t& highest = most[rank.source];
    highest = std::max(highest, rank.rank + 1);
  }
  if (numbers.empty()) return 0;
  if (!twice) return *numbers.rbegin() + 1;
  int64_t sum = 0;
  for (const auto& [source, count] : most) sum += count;
  return int32_t(std::min<int64_t>(sum, kMostGpus));
}

std::optional<PhaseMeasure> by_hand(const ThroughputConfig& config, ServingPhase phase) {
  const auto& given = phase == ServingPhase::kDecode ? config.running_requests : config.input_tokens;
  if (given.empty()) return std::nullopt;
  PhaseMeasure measure;
  measure.phase = phase;
  int32_t number = 0;
  for (const int64_t tokens : given) {
    measure.ranks.push_back({.source = "given", .rank = number++, .tokens_per_step = double(tokens)});
  }
  return measure;
}

PhaseMeasure from_sources(const ThroughputConfig& config, const Sources& sources, ServingPhase phase) {
  if (auto measure = by_hand(config, phase)) {
    add_traces(sources.traces, true, *measure);
    return *measure;
  }
  PhaseMeasure measure;
  measure.phase = phase;
  std::vector<std::string> paths;
  for (const TraceSteps& trace : sources.traces) {
    if (trace.phases[size_t(phase)] || trace.unknown) paths.push_back(trace.path);
  }
  const bool windowed = !config.window_begin.empty() || !config.window_end.empty();
  // Before the traces, so that their own batch sizes count only where no log has any; the step time is theirs.
  for (const LogSummary& log : sources.logs) add_log(log, paths, windowed ? 0 : kSteadyShare, measure);
  if (sources.first && sources.last) add_live(*sources.first, *sources.last, measure);
  // A trace that does not say its phase is of the phase asked for, else of the one that something is known of.
  const bool takes_unknown = config.phase == phase || !measure.ranks.empty();
  add_traces(sources.traces, takes_unknown, measure);
  return measure;
}

int32_t gpus_of(const ThroughputConfig& config, const Sources& sources, const PhaseMeasure& measure) {
  if (config.num_gpus) return *config.num_gpus;
  const int64_t ranks = config.dp_size.value_or(int32_t(measure.ranks.size()));
  const double gpus = double(ranks) * gpus_per_rank(sources, measure.phase);
  return int32_t(std::clamp(std::round(gpus), 1.0, double(kMostGpus)));
}

int32_t expected_ranks(const ThroughputConfig& config, const Sources& sources, const PhaseMeasure& measure) {
  if (config.dp_size) return *config.dp_size;
  if (config.num_gpus) return int32_t(double(*config.num_gpus) / gpus_per_rank(sources, measure.phase));
  return ranks_by_number(measure.ranks);
}

bool has_anything(const PhaseMeasure& measure) { return !measure.ranks.empty() || measure.step.has_value(); }

}  // namespace

Status ThroughputConfig::validate() const {
  if (!running_requests.empty() && !input_tokens.empty()) {
    return invalid_input("argument --input-tokens: not together with --running-req");
  }
  for (const auto* list : {&running_requests, &input_tokens}) {
    for (const int64_t value : *list) {
      if (value < 0) return invalid_input(fmt::format("a rank's batch of {} is below 0", value));
    }
  }
  if (step_ms && !(*step_ms > 0 && std::isfinite(*step_ms))) {
    return invalid_input(fmt::format("argument --step-ms: {} is not above 0", *step_ms));
  }
  for (const auto& [value, name] : {std::pair(num_gpus, "--gpus"), std::pair(dp_size, "--dp-size")}) {
    if (value && (*value < 1 || *value > kMostGpus)) {
      return invalid_input(fmt::format("argument {}: {} is not in [1, {}]", name, *value, kMostGpus));
    }
  }
  if (window <= Duration::zero()) return invalid_input("argument --window-s: must be above 0");
  if (!(tolerance > 0 && tolerance <= 10)) return invalid_input("argument --tolerance: not in (0, 10]");
  const bool by_hand_given = !running_requests.empty() || !input_tokens.empty();
  if (!by_hand_given && logs.empty() && traces.empty() && urls.empty()) {
    return invalid_input("one of --log, --trace, --url, --running-req, --input-tokens is wanted");
  }
  if (by_hand_given && (!logs.empty() || !urls.empty())) {
    return invalid_input("--running-req and --input-tokens go with --step-ms or --trace, not with --log or --url");
  }
  return Ok{};
}

Result<std::vector<ThroughputReport>> measure_throughput(const ThroughputConfig& config, const ThroughputParts& parts) {
  RETURN_IF_ERROR(config.validate());
  CHECK(config.urls.empty() || (parts.clock && parts.wait));
  ASSIGN_OR_RETURN(const Sources sources, read_sources(config, parts));
  std::vector<PhaseMeasure> measures;
  for (const ServingPhase phase : {ServingPhase::kDecode, ServingPhase::kPrefill}) {
    if (config.phase && *config.phase != phase) continue;
    PhaseMeasure measure = from_sources(config, sources, phase);
    if (config.phase || has_anything(measure)) measures.push_back(std::move(measure));
  }
  if (measures.empty()) {
    measures.push_back({.phase = ServingPhase::kDecode});
    for (const LogSummary& log : sources.logs) {
      measures[0].notes.push_back(fmt::format(
          "{}: {} lines, but no 'Decode batch' or 'Prefill batch' among those that count", log.path, log.lines));
    }
  }
  // A step time given by hand is decode's where both are there: that is what users read off a trace.
  if (config.step_ms) measures[0].step = StepTime{.seconds = *config.step_ms * 1e-3, .how = "given"};
  std::vector<ThroughputReport> reports;
  for (PhaseMeasure& measure : measures) {
    measure.expected_ranks = expected_ranks(config, sources, measure);
    reports.push_back(judge(measure, gpus_of(config, sources, measure), config.tolerance));
  }
  return reports;
}

}  // namespace tandem::loadgen
