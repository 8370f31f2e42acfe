// tandem slow_down: /slow_down to decode instances, named or found at a router.
#include <fmt/format.h>

#include "app/commands.h"
#include "app/fan_out.h"
#include "app/flags.h"

namespace tandem::app {
namespace {

using enum FlagKind;
using enum FlagSupport;

constexpr Flag kFlags[] = {
    {"--sleep", kString, nullptr, nullptr, kWorks, "seconds before each step; null: full speed again"},
};

// The body of /slow_down.
Result<std::string> read_order(const FlagValues& flags) {
  if (!flags.has("sleep")) return invalid_input("argument --sleep is required: seconds or null");
  const std::string sleep = flags.text("sleep");
  if (sleep != "null") {
    double seconds = 0;
    const Result<json::Document> number = json::Document::parse(sleep, "--sleep");
    if (!number || number->root().get(seconds) != simdjson::SUCCESS || !(seconds >= 0)) {
      return invalid_input(fmt::format("argument --sleep: '{}' is neither a number of seconds nor null", sleep));
    }
  }
  return fmt::format(R"({{"forward_sleep_time": {}}})", sleep);
}

Result<FanOutRequest> read_request(const FlagValues& flags) {
  FanOutRequest request;
  request.path = "/slow_down";
  ASSIGN_OR_RETURN(request.body, read_order(flags));
  request.timeout = target_timeout(flags);
  return request;
}

int fail(const Error& error, int status) {
  fmt::print(stderr, "tandem slow_down: error: {}\n", error.message);
  return status;
}

}  // namespace

int run_slow_down(Args args) {
  Result<ParseOutcome> parsed =
      parse_flags("slow_down", "Makes servers sleep before each step, so that requests collect.",
                  with_target_flags(kFlags, "decode"), args);
  if (!parsed) return fail(parsed.error(), 2);
  if (parsed->help_shown) return 0;
  const Result<FanOutRequest> request = read_request(parsed->values);
  if (!request) return fail(request.error(), 2);
  const Result<Targets> targets = find_targets(parsed->values);
  if (!targets) return fail(targets.error(), targets.error().code == ErrorCode::kInvalidInput ? 2 : 1);
  // Every server is told, also after one that did not take it.
  const Status done = print_answers(fan_out(*targets, *request));
  return done ? 0 : fail(done.error(), 1);
}

}  // namespace tandem::app
