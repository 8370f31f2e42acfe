#include "loadgen/throughput/log_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "loadgen/throughput/byte_source.h"

namespace tandem::loadgen {
namespace {

constexpr size_t kMaxLineBytes = 4096;  // servers print all their arguments in one line
constexpr int64_t kExactSizes = 4096;   // larger batches are summed up with those of nearly the same size
constexpr int64_t kCoarseStep = 64;
constexpr double kSecondsPerDay = 86400;

Result<LogWindow::Edge> parse_edge(const std::string& text) {
  if (text.empty()) return LogWindow::Edge{};
  if (const auto stamp = parse_log_stamp(text)) return LogWindow::Edge{LogWindow::Kind::kStamp, *stamp};
  if (const auto clock = parse_log_stamp("1970-01-01 " + text)) return LogWindow::Edge{LogWindow::Kind::kClock, *clock};
  double seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error == std::errc() && end == text.data() + text.size() && std::isfinite(seconds)) {
    return LogWindow::Edge{LogWindow::Kind::kRelative, seconds};
  }
  return invalid_input(
      fmt::format("argument --window: expected 'YYYY-MM-DD HH:MM:SS', 'HH:MM:SS' or seconds, got '{}'", text));
}

double on_axis_of(const LogWindow::Edge& edge, double stamp_s, double first_stamp_s) {
  if (edge.kind == LogWindow::Kind::kClock) return std::fmod(stamp_s, kSecondsPerDay);
  return edge.kind == LogWindow::Kind::kRelative ? stamp_s - first_stamp_s : stamp_s;
}

BatchSum sum_of_line(double size, double tokens, double stamp_s) {
  return {.lines = 1, .size = size, .tokens = tokens, .first_s = stamp_s, .last_s = stamp_s};
}

BatchSums& profile_sums(PhaseLines& lines, const std::string& id) {
  auto& profiles = lines.profiles;
  for (auto& [known, sums] : profiles) {
    if (known == id) return sums;
  }
  // The last of them are what users read.
  if (profiles.size() == kMaxProfiles) profiles.erase(profiles.begin());
  return profiles.emplace_back(id, BatchSums()).second;
}

}  // namespace

void BatchSum::add(const BatchSum& other) {
  if (other.lines > 0) {
    first_s = lines > 0 ? std::min(first_s, other.first_s) : other.first_s;
    last_s = lines > 0 ? std::max(last_s, other.last_s) : other.last_s;
  }
  lines += other.lines;
  size += other.size;
  tokens += other.tokens;
  timed_lines += other.timed_lines;
  timed_tokens += other.timed_tokens;
  time_s += other.time_s;
}

void BatchSums::add(double size, const BatchSum& batch) {
  const auto exact = int64_t(std::min(size, 1e15));
  const int64_t key = exact < kExactSizes ? exact : exact / kCoarseStep * kCoarseStep;
  sums_[key].add(batch);
  largest_ = std::max(largest_, double(key));
}

BatchSum BatchSums::from(double size) const {
  BatchSum sum;
  for (auto at = sums_.lower_bound(int64_t(std::ceil(size))); at != sums_.end(); ++at) sum.add(at->second);
  return sum;
}

Result<LogWindow> LogWindow::parse(const std::string& begin, const std::string& end) {
  LogWindow window;
  ASSIGN_OR_RETURN(window.begin, parse_edge(begin));
  ASSIGN_OR_RETURN(window.end, parse_edge(end));
  return window;
}

bool LogWindow::holds(double stamp_s, double first_stamp_s) const {
  if (begin.kind != Kind::kNone && on_axis_of(begin, stamp_s, first_stamp_s) < begin.seconds) return false;
  return end.kind == Kind::kNone || on_axis_of(end, stamp_s, first_stamp_s) <= end.seconds;
}

LogReader::LogReader(std::string path, LogWindow window) : window_(window) { summary_.path = std::move(path); }

void LogReader::feed(std::string_view bytes) {
  const auto keep = [this](std::string_view part) {
    partial_.append(part.substr(0, kMaxLineBytes - std::min(kMaxLineBytes, partial_.size())));
  };
  while (!bytes.empty()) {
    const size_t end = bytes.find('\n');
    if (end == std::string_view::npos) return keep(bytes);
    if (partial_.empty()) {
      take_line(bytes.substr(0, std::min(end, kMaxLineBytes)));
    } else {
      keep(bytes.substr(0, end));
      take_line(partial_);
      partial_.clear();
    }
    bytes.remove_prefix(end + 1);
  }
}

// A last line without its end may have been cut; it counts only if it can be read.
LogSummary LogReader::finish() {
  if (!partial_.empty() && parse_log_line(partial_)) take_line(partial_);
  partial_.clear();
  return std::move(summary_);
}

// What came before the ready line was warm-up, or an earlier server that wrote to the same file.
void LogReader::reset() {
  summary_.before_ready += batch_lines_;
  batch_lines_ = 0;
  summary_.ranks.clear();
  states_.clear();
}

void LogReader::take_line(std::string_view text) {
  summary_.lines += 1;
  const Result<LogLine> parsed = parse_log_line(text);
  if (!parsed) {
    summary_.garbled += 1;
    if (summary_.first_garbled.empty()) {
      summary_.first_garbled = fmt::format("line {}: {}", summary_.lines, parsed.error().message);
    }
    return;
  }
  const LogLine& line = *parsed;
  if (line.stamp_s) {
    if (!has_stamp_) first_stamp_s_ = *line.stamp_s;
    has_stamp_ = true;
    stamp_s_ = *line.stamp_s;
  }
  if (line.event == LogEvent::kOther) return;
  if (line.event == LogEvent::kReady) return reset();
  const int32_t number = std::max(0, line.dp_rank);
  if (!states_.contains(number) && states_.size() == kMaxLogRanks) return;
  RankState& state = states_[number];
  switch (line.event) {
    case LogEvent::kSleep: state.asleep = true; break;
    case LogEvent::kProfileDone:
      state.disturbed |= state.profiling;
      state.profiling = false;
      break;
    case LogEvent::kProfileStarts:
      state.profiling = true;
      state.profile_id = line.profile_id;
      break;
    default: take_batch(line, number, state); break;
  }
}

void LogReader::take_batch(const LogLine& line, int32_t number, RankState& state) {
  const bool counts = !window_.given() || (has_stamp_ && window_.holds(stamp_s_, first_stamp_s_));
  const bool asleep = std::exchange(state.asleep, false), disturbed = std::exchange(state.disturbed, false);
  const bool is_decode = line.event == LogEvent::kDecodeBatch;
  const double before = is_decode ? 0 : std::exchange(state.prefill_tokens, double(line.new_tokens));
  if (!counts) return;
  batch_lines_ += 1;
  RankLines& rank = summary_.ranks[number];
  rank.tp_rank = line.tp_rank;
  rank.after_sleep += asleep ? 1 : 0;
  rank.after_profile += disturbed && !state.profiling ? 1 : 0;
  PhaseLines& phase = is_decode ? rank.decode : rank.prefill;
  const double size = is_decode ? double(line.running) : double(line.new_tokens);
  const double tokens = is_decode ? size * line.accept_length : size;
  BatchSum sum = sum_of_line(size, tokens, stamp_s_);
  if (state.profiling) {
    rank.in_profile += 1;
    return profile_sums(phase, state.profile_id).add(size, sum);
  }
  const double rate = (is_decode ? line.gen_throughput : line.input_throughput).value_or(0);
  // Decode: of this line's steps. Prefill: of the batch before, which has a sum of its own size.
  const double timed = is_decode ? tokens : before;
  const bool has_time = !asleep && !disturbed && rate > 0 && timed > 0;
  BatchSum time{.timed_lines = 1, .timed_tokens = timed, .time_s = has_time ? timed / rate : 0};
  if (is_decode && asleep) return;  // its batch may still be the small one from before the sleep
  if (has_time && is_decode) sum.add(time);
  phase.undisturbed.add(size, sum);
  if (has_time && !is_decode) phase.undisturbed.add(timed, time);
}

Result<LogSummary> read_log(const std::string& path, const LogWindow& window) {
  LogReader reader(path, window);
  RETURN_IF_ERROR(read_pieces(path, [&](std::string_view piece) -> Status {
    reader.feed(piece);
    return Ok{};
  }));
  LogSummary summary = reader.finish();
  if (summary.garbled > 0 && summary.ranks.empty()) {
    return corrupt(fmt::format("{}: {}", path, summary.first_garbled));
  }
  return summary;
}

}  // namespace tandem::loadgen
