#include "loadgen/throughput/log_line.h"

#include <fmt/format.h>

#include <charconv>
#include <chrono>

namespace tandem::loadgen {
namespace {

// Some launchers put a node's name in front of each line.
constexpr size_t kLongestForeword = 256;
constexpr size_t kStampSize = 19;  // YYYY-MM-DD HH:MM:SS

template <class T>
bool parse_number(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end != text.data();
}

std::optional<int> digits(std::string_view text, size_t at, size_t count) {
  int value = 0;
  for (const char c : text.substr(at, count)) {
    if (c < '0' || c > '9') return std::nullopt;
    value = value * 10 + (c - '0');
  }
  return value;
}

// The number behind "name: "; nothing where the line does not have it.
template <class T>
std::optional<T> value_after(std::string_view message, std::string_view name) {
  const size_t at = message.find(name);
  if (at == std::string_view::npos) return std::nullopt;
  T value{};
  if (!parse_number(message.substr(at + name.size()), value)) return std::nullopt;
  return value;
}

// "DP3 TP12 EP12"
void read_scope(std::string_view scope, LogLine& line) {
  for (const auto& [name, rank] : {std::pair("DP", &line.dp_rank), std::pair("TP", &line.tp_rank)}) {
    const size_t at = scope.find(name);
    if (at == std::string_view::npos) continue;
    int32_t value = 0;
    if (parse_number(scope.substr(at + 2), value) && value >= 0) *rank = value;
  }
}

// Reads the prefix "[stamp DP0 TP0] " and gives the rest of the line: the message.
std::string_view read_prefix(std::string_view text, LogLine& line) {
  for (size_t at = text.find('['); at < kLongestForeword; at = text.find('[', at + 1)) {
    const std::string_view rest = text.substr(at + 1);
    line.stamp_s = parse_log_stamp(rest.substr(0, kStampSize));
    if (!line.stamp_s) continue;
    line.clock = rest.substr(11, 8);
    const size_t close = rest.find(']');
    if (close == std::string_view::npos) return {};
    std::string_view scope = rest.substr(kStampSize, close - kStampSize);
    if (scope.starts_with('.') || scope.starts_with(',')) {
      int32_t milliseconds = 0;
      if (parse_number(scope.substr(1), milliseconds) && milliseconds >= 0 && milliseconds < 1000) {
        *line.stamp_s += milliseconds * 1e-3;
      }
    }
    read_scope(scope, line);
    const std::string_view message = rest.substr(close + 1);
    return message.starts_with(' ') ? message.substr(1) : message;
  }
  return text;
}

Result<LogLine> decode_batch(std::string_view message, LogLine line) {
  line.event = LogEvent::kDecodeBatch;
  const auto running = value_after<int64_t>(message, "#running-req: ");
  if (!running || *running < 0) return corrupt("expected '#running-req: N' in a Decode batch line");
  line.running = *running;
  line.gen_throughput = value_after<double>(message, "gen throughput (token/s): ");
  if (!line.gen_throughput || !(*line.gen_throughput >= 0)) {
    return corrupt("expected 'gen throughput (token/s): X' in a Decode batch line");
  }
  const double accepted = value_after<double>(message, "accept len: ").value_or(1);
  line.accept_length = accepted >= 1 && accepted < 1e3 ? accepted : 1;
  return line;
}

Result<LogLine> prefill_batch(std::string_view message, LogLine line) {
  line.event = LogEvent::kPrefillBatch;
  const auto tokens = value_after<int64_t>(message, "#new-token: ");
  if (!tokens || *tokens < 0) return corrupt("expected '#new-token: N' in a Prefill batch line");
  line.new_tokens = *tokens;
  line.input_throughput = value_after<double>(message, "input throughput (token/s): ");
  if (line.input_throughput && !(*line.input_throughput >= 0)) line.input_throughput.reset();
  return line;
}

std::string_view profile_id_of(std::string_view message) {
  constexpr std::string_view kName = "profile id: ";
  const size_t at = message.find(kName);
  if (at == std::string_view::npos) return {};
  const std::string_view rest = message.substr(at + kName.size());
  return rest.substr(0, rest.find(')'));
}

}  // namespace

std::optional<double> parse_log_stamp(std::string_view text) {
  if (text.size() < kStampSize) return std::nullopt;
  for (const auto& [at, mark] : {std::pair(4, '-'), {7, '-'}, {10, ' '}, {13, ':'}, {16, ':'}}) {
    if (text[size_t(at)] != mark) return std::nullopt;
  }
  const auto year = digits(text, 0, 4), month = digits(text, 5, 2), day = digits(text, 8, 2);
  const auto hour = digits(text, 11, 2), minute = digits(text, 14, 2), second = digits(text, 17, 2);
  if (!year || !month || !day || !hour || !minute || !second) return std::nullopt;
  const std::chrono::year_month_day date{std::chrono::year(*year), std::chrono::month(unsigned(*month)),
                                         std::chrono::day(unsigned(*day))};
  if (!date.ok() || *hour > 23 || *minute > 59 || *second > 60) return std::nullopt;
  const int64_t days = std::chrono::sys_days(date).time_since_epoch().count();
  double stamp = double(days * 86400 + *hour * 3600 + *minute * 60 + *second);
  double fraction = 0;
  if (text.size() > kStampSize + 1 && (text[kStampSize] == '.' || text[kStampSize] == ',') &&
      parse_number("0." + std::string(text.substr(kStampSize + 1)), fraction)) {
    stamp += fraction;
  }
  return stamp;
}

Result<LogLine> parse_log_line(std::string_view text) {
  LogLine line;
  const std::string_view message = read_prefix(text, line);
  if (message.starts_with("Decode batch,") || message.starts_with("Decode batch.")) return decode_batch(message, line);
  if (message.starts_with("Prefill batch,") || message.starts_with("Prefill batch.")) {
    return prefill_batch(message, line);
  }
  if (message.starts_with("Scheduler.run_batch sleep ")) line.event = LogEvent::kSleep;
  if (message.starts_with("The server is fired up and ready to roll!")) line.event = LogEvent::kReady;
  if (message.starts_with("Profiling done.")) line.event = LogEvent::kProfileDone;
  if (message.starts_with("Profiling starts")) {
    line.event = LogEvent::kProfileStarts;
    line.profile_id = profile_id_of(message);
  }
  return line;
}

}  // namespace tandem::loadgen
