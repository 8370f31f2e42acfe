// `tandem profile`: records steps on servers, as python3 -m sglang.profiler does, on several at once and behind a
// router. `tandem profile show FILE`: what a trace says per operator.
#include <fmt/format.h>

#include <filesystem>
#include <fstream>

#include "app/commands.h"
#include "app/environment.h"
#include "app/fan_out.h"
#include "app/flags.h"
#include "loadgen/profile_servers.h"
#include "loadgen/target.h"
#include "profile/trace_reader.h"

namespace tandem::app {
namespace {

using enum FlagKind;
using enum FlagSupport;

constexpr Flag kProfileFlags[] = {
    {"--url", kStringList, nullptr, nullptr, kWorks,
     "servers, or a router, which stands for its servers (default http://localhost:30000)"},
    {"--router", kString, nullptr, nullptr, kWorks, "all servers of this router that have --role"},
    {"--role", kString, "all", "all|prefill|decode|regular", kWorks, "which of them"},
    {"--output-dir", kString, nullptr, nullptr, kWorks,
     "a directory of the time's name is made in it (default: SGLANG_TORCH_PROFILER_DIR, else /tmp)"},
    {"--num-steps", kInt, "5", nullptr, kWorks, "steps to record"},
    {"--start-step", kInt, nullptr, nullptr, kWorks, "forward step with which to begin"},
    {"--profile-by-stage", kSwitch, nullptr, nullptr, kWorks, "prefill and decode steps into files of their own"},
    {"--profile-prefix", kString, "", nullptr, kWorks, "beginning of the files' names"},
    {"--cpu", kSwitch, nullptr, nullptr, kWorks, "record operators (the default)"},
    {"--no-cpu", kSwitch, nullptr, nullptr, kWorks, "do not record operators"},
    {"--gpu", kSwitch, nullptr, nullptr, kWorks, "record kernels of the GPU, where there is one (the default)"},
    {"--no-gpu", kSwitch, nullptr, nullptr, kWorks, "do not record kernels"},
    {"--no-record-shapes", kSwitch, nullptr, nullptr, kWorks, "leave the operators' shapes out"},
    {"--mem", kSwitch, nullptr, nullptr, kLater, "history of memory"},
    {"--rpd", kSwitch, nullptr, nullptr, kLater, "AMD's profiler"},
    {"--merge-profiles", kSwitch, nullptr, nullptr, kWorks, "one file of all ranks and servers; waits for them"},
    {"--wait", kInt, nullptr, nullptr, kWorks,
     "wait so many seconds for the files (default 120 with --merge-profiles, else not at all)"},
    kApiKeyFlag,
    kAdminApiKeyFlag,
    {"--stop", kSwitch, nullptr, nullptr, kWorks, "end a profile that runs, instead"},
};

Result<loadgen::ProfileOrder> read_order(const FlagValues& flags) {
  for (const char* later : {"mem", "rpd"}) {
    if (flags.enabled(later)) return invalid_input(fmt::format("--{}: not in this version", later));
  }
  loadgen::ProfileOrder order;
  order.authorization = client_authorization(flags);
  if (flags.has("url")) order.urls = flags.texts("url");
  if (flags.has("router")) {
    ASSIGN_OR_RETURN(const std::vector<Target> servers,
                     router_targets(flags.text("router"), flags.text("role"), order.authorization));
    for (const Target& server : servers) order.urls.push_back(server.url);
  }
  if (order.urls.empty()) order.urls.emplace_back("http://localhost:30000");
  order.num_steps = flags.integer("num_steps");
  if (*order.num_steps < 1) return invalid_input("argument --num-steps: must be at least 1");
  if (flags.has("start_step")) order.start_step = flags.integer("start_step");
  order.by_stage = flags.enabled("profile_by_stage");
  order.prefix = flags.text("profile_prefix");
  order.record_shapes = !flags.enabled("no_record_shapes");
  if (!flags.enabled("no_cpu")) order.activities.push_back("CPU");
  if (!flags.enabled("no_gpu")) order.activities.push_back("GPU");
  if (order.activities.empty()) return invalid_input("--no-cpu and --no-gpu leave nothing to record");
  return order;
}

Status save_server_args(const std::string& directory, const loadgen::ProfileOrder& order) {
  ASSIGN_OR_RETURN(const loadgen::Target target, loadgen::Target::create(order.urls.front(), order.authorization));
  ASSIGN_OR_RETURN(const json::Document info, target.server_info());
  std::ofstream file(directory + "/server_args.json");
  file << simdjson::minify(info.root()) << "\n";
  file.close();
  if (!file) return invalid_input(fmt::format("{}/server_args.json: cannot be written", directory));
  return Ok{};
}

Status gather(const std::string& directory, const std::vector<loadgen::ProfiledServer>& servers, Duration patience,
              bool merge, const Clock& clock) {
  size_t wanted = 0;
  for (const auto& server : servers) wanted += size_t(server.num_ranks);
  const std::vector<std::string> paths = loadgen::wait_for_traces(directory, servers, patience, clock);
  for (const std::string& path : paths) fmt::print("{}\n", path);
  if (paths.size() < wanted) {
    return timed_out(fmt::format("{} of {} traces are in {} after {:.0f} s; idle servers take no steps", paths.size(),
                                 wanted, directory, seconds(patience)));
  }
  if (!merge) return Ok{};
  const std::string merged = directory + "/merged.trace.json.gz";
  RETURN_IF_ERROR(profile::merge_traces(paths, merged));
  fmt::print("{}\n", merged);
  return Ok{};
}

Status record(const FlagValues& flags) {
  const SystemClock clock;
  ASSIGN_OR_RETURN(loadgen::ProfileOrder order, read_order(flags));
  if (flags.enabled("stop")) {
    std::vector<loadgen::ProfiledServer> servers;
    for (const std::string& url : order.urls) {
      ASSIGN_OR_RETURN(const auto found, loadgen::find_servers(url, order.authorization));
      servers.insert(servers.end(), found.begin(), found.end());
    }
    return loadgen::stop_profiles(servers, order.authorization);
  }
  ASSIGN_OR_RETURN(const Environment environment, read_environment());
  const std::string parent = flags.has("output_dir") ? flags.text("output_dir") : environment.profile_directory;
  order.output_dir = std::filesystem::absolute(fmt::format("{}/{}", parent, clock.unix_seconds())).string();
  std::error_code error;
  std::filesystem::create_directories(order.output_dir, error);
  if (error) return invalid_input(fmt::format("--output-dir {}: {}", order.output_dir, error.message()));
  fmt::print("Dump profiling traces to {}\n", order.output_dir);
  RETURN_IF_ERROR(save_server_args(order.output_dir, order));
  ASSIGN_OR_RETURN(const auto servers, loadgen::start_profiles(order));
  for (const auto& server : servers) {
    fmt::print("profiling {} steps{} on {} ({} rank{})\n", *order.num_steps, order.by_stage ? " of each stage" : "",
               server.url, server.num_ranks, server.num_ranks == 1 ? "" : "s");
  }
  std::fflush(stdout);
  const bool merge = flags.enabled("merge_profiles");
  const int64_t wait_s = flags.has("wait") ? flags.integer("wait") : merge ? 120 : 0;
  if (wait_s <= 0) return Ok{};
  return gather(order.output_dir, servers, std::chrono::seconds(wait_s), merge, clock);
}

int finish(const Status& done) {
  if (done) return 0;
  fmt::print(stderr, "tandem profile: error: {}\n", done.error().message);
  return done.error().code == ErrorCode::kInvalidInput ? 2 : 1;
}

int show(Args files) {
  if (files.empty() || files[0].starts_with("-")) {
    fmt::print(stderr, "usage: tandem profile show FILE...   per operator: count, time, share, rates\n");
    return files.empty() || (files[0] != "--help" && files[0] != "-h") ? 2 : 0;
  }
  for (const std::string& path : files) {
    const Result<profile::Trace> trace = profile::read_trace(path);
    if (!trace) return finish(trace.error());
    fmt::print("{}{}\n{}", &path == &files[0] ? "" : "\n", path, profile::operator_table(*trace));
  }
  return 0;
}

}  // namespace

int run_profile(Args args) {
  if (!args.empty() && args[0] == "show") return show(args.subspan(1));
  Result<ParseOutcome> parsed =
      parse_flags("profile", "Records steps on servers (tandem profile show FILE: what a trace says per operator).",
                  kProfileFlags, args);
  if (!parsed) return finish(parsed.error());
  if (parsed->help_shown) return 0;
  return finish(record(parsed->values));
}

}  // namespace tandem::app
