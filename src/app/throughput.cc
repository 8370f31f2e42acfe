#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <thread>

#include "app/commands.h"
#include "app/environment.h"
#include "app/flags.h"
#include "app/signals.h"
#include "loadgen/throughput.h"

namespace tandem::app {
namespace {

using enum FlagKind;
using enum FlagSupport;

constexpr Flag kThroughputFlags[] = {
    {"--log", kStringList, nullptr, nullptr, kWorks, "logs of servers (SGLang's or ours), one a node; .gz, too"},
    {"--trace", kStringList, nullptr, nullptr, kWorks, "traces (ours or torch's), one a rank; .gz, too"},
    {"--url", kStringList, nullptr, nullptr, kWorks, "running servers or routers of ours: asked twice"},
    {"--window-s", kFloat, "10", nullptr, kWorks, "--url: seconds between the two samples"},
    {"--window", kString, nullptr, nullptr, kWorks,
     "--log: BEGIN,END as stamps, times of day or seconds from a log's first line (default: batches of at least 90% of "
     "a rank's largest)"},
    {"--running-req", kString, nullptr, nullptr, kWorks, "decode by hand: #running-req of each rank, comma-separated"},
    {"--input-tokens", kString, nullptr, nullptr, kWorks, "prefill by hand: new tokens of a step, of each rank"},
    {"--step-ms", kFloat, nullptr, nullptr, kWorks, "duration of a step, in place of what is read"},
    {"--gpus", kInt, nullptr, nullptr, kWorks, "what to divide by (default: the ranks' GPUs as far as they are named)"},
    {"--dp-size", kInt, nullptr, nullptr, kWorks, "ranks that must be there (default: the GPUs', or as numbered)"},
    {"--phase", kString, "auto", "auto|decode|prefill", kWorks, "auto: whatever was read"},
    {"--tolerance", kFloat, "0.1", nullptr, kWorks, "largest share by which the formulas may differ in a valid figure"},
    kApiKeyFlag,
    kAdminApiKeyFlag,
    {"--format", kString, "text", "text|json", kWorks, "form of the output"},
};

Result<std::vector<int64_t>> parse_list(const FlagValues& flags, const char* field, const char* name) {
  std::vector<int64_t> list;
  if (!flags.has(field)) return list;
  const std::string text = flags.text(field);
  const char *at = text.data(), *const end = text.data() + text.size();
  while (true) {
    int64_t value = 0;
    const auto [rest, error] = std::from_chars(at, end, value);
    if (error != std::errc() || (rest != end && *rest != ',')) {
      return invalid_input(fmt::format("argument {}: expected comma-separated integers, got '{}'", name, text));
    }
    list.push_back(value);
    if (rest == end) return list;
    at = rest + 1;
  }
}

Result<loadgen::ThroughputConfig> throughput_config(const FlagValues& flags) {
  loadgen::ThroughputConfig config;
  ASSIGN_OR_RETURN(config.running_requests, parse_list(flags, "running_req", "--running-req"));
  ASSIGN_OR_RETURN(config.input_tokens, parse_list(flags, "input_tokens", "--input-tokens"));
  if (flags.has("log")) config.logs = flags.texts("log");
  if (flags.has("trace")) config.traces = flags.texts("trace");
  if (flags.has("url")) config.urls = flags.texts("url");
  config.authorization = client_authorization(flags);
  config.window = from_seconds(std::clamp(flags.number("window_s"), 0.0, 1e6));
  if (flags.has("window")) {
    const std::string text = flags.text("window");
    const size_t comma = text.find(',');
    if (comma == std::string::npos) return invalid_input("argument --window: expected BEGIN,END");
    config.window_begin = text.substr(0, comma);
    config.window_end = text.substr(comma + 1);
  }
  if (flags.has("step_ms")) config.step_ms = flags.number("step_ms");
  const auto count = [&](const char* field) -> std::optional<int32_t> {
    if (!flags.has(field)) return std::nullopt;
    return int32_t(std::clamp<int64_t>(flags.integer(field), 0, INT32_MAX));
  };
  config.num_gpus = count("gpus");
  config.dp_size = count("dp_size");
  if (flags.text("phase") == "decode") config.phase = loadgen::ServingPhase::kDecode;
  if (flags.text("phase") == "prefill") config.phase = loadgen::ServingPhase::kPrefill;
  config.tolerance = flags.number("tolerance");
  return config;
}

bool wait_unless_stopped(const Clock& clock, Duration length) {
  const TimePoint end = clock.now() + length;
  while (clock.now() < end) {
    if (signals_seen() > 0) return false;
    std::this_thread::sleep_for(std::min<Duration>(end - clock.now(), std::chrono::milliseconds(20)));
  }
  return true;
}

bool is_known(const loadgen::ThroughputReport& report) { return report.by_step || report.by_counters; }

Result<int> throughput(const FlagValues& flags) {
  ASSIGN_OR_RETURN(const loadgen::ThroughputConfig config, throughput_config(flags));
  const SystemClock clock;
  loadgen::ThroughputParts parts;
  parts.clock = &clock;
  parts.wait = [&clock](Duration length) { return wait_unless_stopped(clock, length); };
  ASSIGN_OR_RETURN(const std::vector<loadgen::ThroughputReport> reports, loadgen::measure_throughput(config, parts));
  const bool as_json = flags.text("format") == "json";
  fmt::print("{}", as_json ? loadgen::throughput_json(reports) : loadgen::format_throughput(reports));
  return std::any_of(reports.begin(), reports.end(), is_known) ? 0 : 1;
}

}  // namespace

int run_throughput(Args args) {
  const auto fail = [](const Error& error) {
    fmt::print(stderr, "tandem throughput: error: {}\n", error.message);
    return error.code == ErrorCode::kInvalidInput ? 2 : 1;
  };
  Result<ParseOutcome> parsed =
      parse_flags("throughput", "Tokens per second per GPU, by step and by counters, and whether the figure is valid.",
                  kThroughputFlags, args);
  if (!parsed) return fail({ErrorCode::kInvalidInput, parsed.error().message});
  if (parsed->help_shown) return 0;
  watch_signals();
  const Result<int> done = throughput(parsed->values);
  return done ? *done : fail(done.error());
}

}  // namespace tandem::app
