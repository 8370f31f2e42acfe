#include "loadgen/throughput/trace_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>

#include "loadgen/throughput/byte_source.h"

namespace tandem::loadgen {
namespace {

// More marks than a profile of an hour has; what comes behind them does not change a median.
constexpr size_t kMaxMarks = 1 << 20;

template <class T>
T member(simdjson::dom::object object, std::string_view key, T fallback) {
  T value{};
  return object[key].get(value) ? fallback : value;
}

// Integers and fractions alike.
std::optional<double> number(simdjson::dom::object object, std::string_view key) {
  double value = 0;
  if (object[key].get_double().get(value) || !std::isfinite(value)) return std::nullopt;
  return value;
}

uint64_t track_of(simdjson::dom::object event) {
  uint64_t hash = 0;
  for (const std::string_view key : {"pid", "tid", "cat"}) {
    simdjson::dom::element value;
    const std::string text = event[key].get(value) ? std::string() : simdjson::minify(value);
    hash = hash * 0x9E3779B97F4A7C15 + std::hash<std::string_view>()(text);
  }
  return hash;
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ptrdiff_t(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

std::optional<int32_t> rank_behind(std::string_view name, std::string_view label) {
  const size_t at = name.find(label);
  if (at == std::string_view::npos) return std::nullopt;
  const std::string_view digits = name.substr(at + label.size());
  int32_t rank = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
  if (error != std::errc() || rank < 0) return std::nullopt;
  return rank;
}

}  // namespace

const char* describe(StepMark mark) {
  switch (mark) {
    case StepMark::kTandemStep: return "trace, median period of its step events";
    case StepMark::kProfilerStep: return "torch trace, median duration of ProfilerStep# annotations";
    case StepMark::kRunBatch: return "torch trace, median gap between run_batch spans";
    case StepMark::kCudaGraphLaunch: return "torch trace, median gap between cudaGraphLaunch calls";
  }
  return "";
}

TraceName parse_trace_name(std::string_view path) {
  const std::string_view name = path.substr(path.find_last_of('/') + 1);
  TraceName out;
  if (const auto rank = rank_behind(name, "-DP-")) {
    out.rank = *rank;
  } else {
    out.rank = rank_behind(name, "-TP-").value_or(0);
  }
  const std::string_view stem = name.substr(0, name.find("-TP-"));
  if (stem.size() < name.size()) out.profile_id = stem.substr(stem.find_last_of('-') + 1);
  for (const auto& [mark, phase] : {std::pair("-EXTEND.", ServingPhase::kPrefill),
                                    {"-prefill.", ServingPhase::kPrefill},
                                    {"-DECODE.", ServingPhase::kDecode},
                                    {"-decode.", ServingPhase::kDecode}}) {
    if (name.find(mark) != std::string_view::npos) out.stage = phase;
  }
  return out;
}

TraceReader::TraceReader(std::string path)
    : scanner_([this](std::string_view event) { return take(event); }), path_(std::move(path)) {}

Status TraceReader::take(std::string_view text) {
  events_ += 1;
  padded_.resize(std::max(padded_.size(), text.size() + simdjson::SIMDJSON_PADDING));
  std::copy(text.begin(), text.end(), padded_.begin());
  simdjson::dom::object event;
  if (const auto error = parser_.parse(padded_.data(), text.size(), false).get_object().get(event)) {
    return corrupt(fmt::format("event {}: expected a JSON object: {}", events_, simdjson::error_message(error)));
  }
  if (member<std::string_view>(event, "ph", "") != "X") return Ok{};
  const auto begin = number(event, "ts");
  if (!begin) return Ok{};
  const double duration = std::max(0.0, number(event, "dur").value_or(0));
  take_span(member<std::string_view>(event, "name", ""), event, {*begin, duration, 0});
  return Ok{};
}

void TraceReader::take_span(std::string_view name, simdjson::dom::object event, Span span) {
  if (name == "step" && take_own(event, span)) return;
  StepMark mark;
  if (name.starts_with("ProfilerStep#")) {
    mark = StepMark::kProfilerStep;
  } else if (name.ends_with("run_batch")) {
    mark = StepMark::kRunBatch;
  } else if (name == "cudaGraphLaunch" || name == "hipGraphLaunch") {
    mark = StepMark::kCudaGraphLaunch;
  } else {
    return;
  }
  std::vector<Span>& spans = marks_[size_t(mark)];
  if (spans.size() == kMaxMarks) return;
  span.track = track_of(event);
  spans.push_back(span);
}

bool TraceReader::take_own(simdjson::dom::object event, const Span& span) {
  simdjson::dom::object args;
  if (event["args"].get(args)) return false;
  const auto kind = member<std::string_view>(args, "kind", "");
  if (kind != "decode" && kind != "extend" && kind != "idle") return false;
  OwnStep step{span.begin_us, span.duration_us};
  step.phase = kind == "extend" ? ServingPhase::kPrefill : ServingPhase::kDecode;
  step.idle = kind == "idle";
  constexpr int64_t kMost = int64_t(1) << 40;  // sums of them stay far from the type's end
  step.step = std::clamp<int64_t>(member<int64_t>(args, "step", 0), 0, kMost);
  step.tokens = std::clamp<int64_t>(member<int64_t>(args, "num_tokens", 0), 0, kMost);
  step.sequences = std::clamp<int64_t>(member<int64_t>(args, "num_sequences", 0), 0, kMost);
  if (own_.size() < kMaxMarks) own_.push_back(step);
  return true;
}

// The track with the most marks: torch writes annotations once for the host and once for the device.
std::optional<TracePhase> TraceReader::by_gaps(std::vector<Span> spans) {
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
    return a.track != b.track ? a.track < b.track : a.begin_us < b.begin_us;
  });
  size_t best = 0, best_size = 0;
  for (size_t at = 0; at < spans.size();) {
    size_t end = at;
    while (end < spans.size() && spans[end].track == spans[at].track) ++end;
    if (end - at > best_size) best = at, best_size = end - at;
    at = end;
  }
  if (best_size < 2) return std::nullopt;
  std::vector<double> gaps;
  for (size_t i = best + 1; i < best + best_size; ++i) gaps.push_back(spans[i].begin_us - spans[i - 1].begin_us);
  return TracePhase{.steps = best_size, .step_s = median(std::move(gaps)) * 1e-6};
}

// An idle step is one of another rank's steps and takes part in the period of neither phase.
std::optional<TracePhase> TraceReader::own_phase(ServingPhase phase) const {
  TracePhase out;
  std::vector<double> gaps, durations;
  double tokens = 0, gap_sum = 0, busy_sum = 0, begin = 0, end = 0;
  for (size_t i = 0; i < own_.size(); ++i) {
    const OwnStep& step = own_[i];
    if (step.idle || step.phase != phase) continue;
    if (out.steps == 0) begin = step.begin_us;
    end = step.begin_us + step.duration_us;
    out.steps += 1;
    tokens += double(phase == ServingPhase::kDecode ? step.sequences : step.tokens);
    durations.push_back(step.duration_us);
    if (i + 1 == own_.size()) continue;
    const double gap = own_[i + 1].begin_us - step.begin_us;
    // Numbers are left out where no rank had work: that is waiting, not a step.
    if (own_[i + 1].step - step.step <= 1) gaps.push_back(gap);
    gap_sum += gap;
    busy_sum += std::min(gap, step.duration_us);
  }
  if (out.steps == 0) return std::nullopt;
  out.step_s = median(gaps.empty() ? durations : gaps) * 1e-6;
  if (gap_sum > 0) out.busy_share = busy_sum / gap_sum;
  out.tokens_per_step = tokens / double(out.steps);
  if (end > begin) out.tokens_per_s = tokens / ((end - begin) * 1e-6);
  out.window_s = std::pair(begin * 1e-6, end * 1e-6);
  return out;
}

Result<TraceSteps> TraceReader::finish() {
  RETURN_IF_ERROR(scanner_.finish());
  const TraceName name = parse_trace_name(path_);
  TraceSteps steps{.path = path_, .rank = name.rank, .profile_id = name.profile_id, .events = events_};
  std::stable_sort(own_.begin(), own_.end(),
                   [](const OwnStep& a, const OwnStep& b) { return a.begin_us < b.begin_us; });
  for (const ServingPhase phase : {ServingPhase::kDecode, ServingPhase::kPrefill}) {
    steps.phases[size_t(phase)] = own_phase(phase);
  }
  if (!own_.empty()) return steps;
  for (const StepMark mark : {StepMark::kProfilerStep, StepMark::kRunBatch, StepMark::kCudaGraphLaunch}) {
    std::optional<TracePhase> found;
    if (mark == StepMark::kProfilerStep && !marks_[size_t(mark)].empty()) {
      std::vector<double> durations;
      for (const Span& span : marks_[size_t(mark)]) durations.push_back(span.duration_us);
      found = TracePhase{.steps = durations.size(), .step_s = median(durations) * 1e-6};
    } else {
      found = by_gaps(marks_[size_t(mark)]);
    }
    if (!found || found->step_s <= 0) continue;
    steps.mark = mark;
    // Only decode steps run as graphs.
    const auto stage = mark == StepMark::kCudaGraphLaunch ? std::optional(ServingPhase::kDecode) : name.stage;
    (stage ? steps.phases[size_t(*stage)] : steps.unknown) = found;
    return steps;
  }
  return not_found(
      fmt::format("{} events, but no steps: expected 'step' events with a kind, ProfilerStep# annotations, or two "
                  "run_batch spans or cudaGraphLaunch calls of one thread",
                  events_));
}

Result<TraceSteps> read_trace(const std::string& path) {
  TraceReader reader(path);
  RETURN_IF_ERROR(read_pieces(path, [&](std::string_view piece) { return reader.feed(piece); }));
  Result<TraceSteps> steps = reader.finish();
  if (!steps) return Error{steps.error().code, fmt::format("{}: {}", path, steps.error().message)};
  return steps;
}

void add_traces(const std::vector<TraceSteps>& traces, bool takes_unknown, PhaseMeasure& measure) {
  std::vector<double> step_times;
  std::vector<RankThroughput> ranks;
  double busy = 0;
  uint64_t fewest = 0;
  const TraceSteps* last = nullptr;
  for (const TraceSteps& trace : traces) {
    std::optional<TracePhase> found = trace.phases[size_t(measure.phase)];
    if (!found && takes_unknown) found = trace.unknown;
    if (!found) continue;
    step_times.push_back(found->step_s);
    busy += found->busy_share;
    fewest = last ? std::min(fewest, found->steps) : found->steps;
    last = &trace;
    if (found->tokens_per_step) {
      ranks.push_back({trace.path, trace.rank, found->tokens_per_step, found->tokens_per_s, found->window_s});
    }
  }
  if (!last) return;
  StepTime step{.seconds = median(step_times), .how = describe(last->mark)};
  step.busy_share = busy / double(step_times.size());
  step.how += fmt::format(" ({} {}, at least {} steps each)", step_times.size(),
                          step_times.size() == 1 ? "rank" : "ranks", fewest);
  const auto [least, most] = std::minmax_element(step_times.begin(), step_times.end());
  if (*most > *least * 1.05) {
    measure.notes.push_back(
        fmt::format("the ranks' step times differ: {:.1f} to {:.1f} ms; the median counts", *least * 1e3, *most * 1e3));
  }
  measure.step = std::move(step);
  if (measure.ranks.empty()) measure.ranks = std::move(ranks);
}

}  // namespace tandem::loadgen
