#include "app/expert_recording.h"

#include <fmt/format.h>

#include "app/fan_out.h"

namespace tandem::app {
namespace {

struct Verb {
  const char* name;
  const char* path;
  const char* about;
};

constexpr Verb kVerbs[] = {
    {"record", "/start_expert_distribution_record", "Servers count their experts' hits from now on, afresh."},
    {"stop", "/stop_expert_distribution_record", "Servers stop counting; what they have is kept."},
    {"dump", "/dump_expert_distribution_record",
     "Servers write what they counted to a file of theirs, and count afresh."},
};

Status run(const Verb& verb, const FlagValues& flags) {
  ASSIGN_OR_RETURN(const Targets targets, find_targets(flags));
  FanOutRequest request;
  request.path = verb.path;
  request.timeout = target_timeout(flags);
  return print_answers(fan_out(targets, request));
}

}  // namespace

int control_recording(const std::string& name, Args args) {
  const Verb* verb = kVerbs;
  while (verb->name != name) ++verb;
  const std::string command = "experts " + name;
  Result<ParseOutcome> parsed = parse_flags(command, verb->about, with_target_flags({}, "all"), args);
  Status done = Ok{};
  if (!parsed) {
    done = parsed.error();
  } else if (!parsed->help_shown) {
    done = run(*verb, parsed->values);
  }
  if (done) return 0;
  fmt::print(stderr, "tandem {}: error: {}\n", command, done.error().message);
  return done.error().code == ErrorCode::kInvalidInput ? 2 : 1;
}

}  // namespace tandem::app
