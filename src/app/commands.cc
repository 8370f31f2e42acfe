#include "app/commands.h"

#include <cstdio>

namespace tandem::app {
namespace {

struct Command {
  const char* name;
  int (*run)(Args);
  const char* about;
};

constexpr Command kCommands[] = {
    {"up", run_up, "prefill server, decode server and router on this machine; --bench measures and exits"},
    {"launch_server", launch_server, "one node of a prefill, decode or combined server (SGLang's flags)"},
    {"router", run_router, "router over prefill and decode servers"},
    {"mini_lb", run_mini_lb, "the router under its old name: port 8000, random policy"},
    {"bench_serving", run_bench_serving, "load client: many requests at a rate"},
    {"bench_one_batch_server", run_bench_one_batch, "load client: one batch in one request"},
    {"reproduce", run_reproduce, "measure, profile, rebalance, measure again: a report with a verdict"},
    {"slow_down", run_slow_down, "make decode servers sleep before each step, so that requests collect"},
    {"bench_rank", run_bench_rank, "one rank of an emulated expert-parallel group on one GPU"},
    {"model", run_model, "inspect a checkpoint: model show DIR"},
    {"profile", run_profile, "record steps on servers; profile show FILE: a trace per operator"},
    {"experts", run_experts, "plan expert placements, show loads; record, stop, dump on running servers"},
    {"throughput", run_throughput, "tokens/s/GPU from logs, traces or servers, and whether the figure is valid"},
    {"explain", run_explain, "who waits for whom: flight recordings in a directory or of running servers"},
    {"doctor", run_doctor, "check ports, devices, limits, model, memory and peers before a start"},
};

void print_usage(std::FILE* out) {
  std::fputs("usage: tandem COMMAND [flags]   (tandem COMMAND --help lists the flags)\n\n", out);
  for (const Command& command : kCommands) std::fprintf(out, "  %-24s %s\n", command.name, command.about);
}

}  // namespace

int run_command(const std::vector<std::string>& args) {
  if (args.empty() || args[0] == "--help" || args[0] == "-h" || args[0] == "help") {
    print_usage(args.empty() ? stderr : stdout);
    return args.empty() ? 2 : 0;
  }
  if (args[0] == "--version") {
    std::puts("tandem " TANDEM_VERSION);
    return 0;
  }
  for (const Command& command : kCommands) {
    if (args[0] == command.name) return command.run(Args(args).subspan(1));
  }
  std::fprintf(stderr, "tandem: unknown command '%s'\n", args[0].c_str());
  print_usage(stderr);
  return 2;
}

}  // namespace tandem::app
