// tandem reproduce: the whole measuring workflow, and whether its number may be believed.
#include <fmt/format.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "app/commands.h"
#include "app/environment.h"
#include "app/fan_out.h"
#include "app/flags.h"
#include "app/fleet.h"
#include "app/machine.h"
#include "app/signals.h"
#include "workflow/half.h"
#include "workflow/report.h"

namespace tandem::app {
namespace {

using std::chrono::milliseconds;
using workflow::HalfPlan;
using workflow::HalfReport;
using workflow::ReproduceReport;
using enum FlagKind;
using enum FlagSupport;

constexpr Flag kFlags[] = {
    {"--output", kString, nullptr, nullptr, kWorks,
     "folder of report.html, report.json and traces (default: reproduce_TIME)"},
    {"--half", kString, "both", "both|decode|prefill", kWorks, "which bottleneck to measure"},
    {"--router", kString, nullptr, nullptr, kWorks, "attach to this deployment instead of starting one per half"},
    {"--api-key", kString, nullptr, nullptr, kWorks, "of that deployment (else OPENAI_API_KEY)"},
    {"--admin-api-key", kString, nullptr, nullptr, kWorks, "of that deployment, where it has one: sent instead"},
    {"--model-path,--model", kString, nullptr, nullptr, kWorks, "Hugging Face directory (default: the embedded model)"},
    {"--decode-split", kString, "1:1", nullptr, kWorks, "prefill:decode servers of the decode-bound half"},
    {"--prefill-split", kString, "1:1", nullptr, kWorks, "prefill:decode servers of the prefill-bound half"},
    {"--decode-ranks", kInt, "2", nullptr, kWorks, "ranks of a decode server"},
    {"--prefill-ranks", kInt, "1", nullptr, kWorks, "ranks of a prefill server"},
    {"--running-per-rank", kInt, "16", nullptr, kWorks, "requests that each decode rank runs at once"},
    {"--decode-input-len", kInt, "64", nullptr, kWorks, "longest prompt of the decode-bound half, tokens"},
    {"--decode-output-len", kInt, "512", nullptr, kWorks, "longest output of the decode-bound half, tokens"},
    {"--prefill-input-len", kInt, "1024", nullptr, kWorks, "prompt of the prefill-bound half, tokens"},
    {"--prefill-output-len", kInt, "2", nullptr, kWorks, "output of the prefill-bound half, tokens"},
    {"--range-ratio", kFloat, "0.5", nullptr, kWorks, "shortest length as a share of the longest (decode-bound half)"},
    {"--saturate-timeout", kFloat, "60", nullptr, kWorks, "seconds within which every decode rank must run so many"},
    {"--settle", kFloat, "5", nullptr, kWorks, "seconds that must be steady before a window"},
    {"--settle-timeout", kFloat, "30", nullptr, kWorks,
     "seconds after which an unsteady rate is measured all the same"},
    {"--window", kFloat, "20", nullptr, kWorks, "seconds measured"},
    {"--profile-steps", kInt, "20", nullptr, kWorks, "steps traced; 0: none"},
    {"--record", kFloat, "5", nullptr, kWorks, "seconds of recorded expert hits; 0: none, and no rebalancing"},
    {"--rebalance", kString, "live", "live|restart|none", kWorks,
     "change the placement while serving, or start again with --init-expert-location"},
    {"--eplb-algorithm", kString, "", nullptr, kWorks, "of the live rebalance (default: the server's)"},
    {"--max-variation", kFloat, "0.10", nullptr, kWorks, "of the rate over parts of a window, for a valid verdict"},
    {"--max-imbalance", kFloat, "0.10", nullptr, kWorks, "of ranks, for a valid verdict"},
    {"--server-args", kString, "", nullptr, kWorks, "more launch_server flags, for every server"},
    {"--decode-args", kString, "", nullptr, kWorks, "more launch_server flags, for decode servers"},
};

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

struct Split {
  int64_t prefill = 1, decode = 1;
};

Result<Split> parse_split(const std::string& text, const char* flag) {
  Split split;
  char rest = 0;
  const int found = std::sscanf(text.c_str(), "%ld:%ld%c", &split.prefill, &split.decode, &rest);
  if (found != 2 || split.prefill < 1 || split.decode < 1 || split.prefill > 64 || split.decode > 64) {
    return invalid_input(fmt::format("{}: wanted prefill:decode, like 2:1, got '{}'", flag, text));
  }
  return split;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text;
}

class Reproduction {
 public:
  explicit Reproduction(const FlagValues& flags) : flags_(flags), zero_(clock_.now()) {}

  Result<ReproduceReport> run() {
    RETURN_IF_ERROR(prepare());
    expected_end_s_ = 0;
    for (const HalfPlan& plan : plans_) expected_end_s_ += expected_s(plan);
    print(fmt::format("tandem reproduce: about {:.0f} s, to {}\n", expected_end_s_, output_));
    for (HalfPlan& plan : plans_) {
      if (signals_seen() > 0) return cancelled("interrupted");
      plan.expected_end_s = expected_end_s_;
      Status done = flags_.has("router") ? attach(plan) : start_and_run(plan);
      if (!done) report_.faults.push_back(fmt::format("{}: {}", plan.name, done.error().message));
    }
    report_.seconds = now_s();
    return std::move(report_);
  }

  const std::string& output() const { return output_; }

 private:
  static constexpr double kStartSeconds = 6;  // of a deployment to be ready and to leave

  static void print(std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }
  double now_s() const { return seconds(clock_.now() - zero_); }

  Status prepare() {
    output_ = flags_.has("output") ? flags_.text("output") : fmt::format("reproduce_{:.0f}", clock_.unix_seconds());
    std::error_code error;
    std::filesystem::create_directories(output_, error);
    output_ = std::filesystem::absolute(output_, error).string();
    if (error || access(output_.c_str(), W_OK) != 0) {
      return invalid_input(fmt::format("--output {}: cannot write there", output_));
    }
    // Inherited by the servers that are started.
    setenv("SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR", output_.c_str(), 1);
    ASSIGN_OR_RETURN(decode_split_, parse_split(flags_.text("decode_split"), "--decode-split"));
    ASSIGN_OR_RETURN(prefill_split_, parse_split(flags_.text("prefill_split"), "--prefill-split"));
    if (flags_.has("router") && flags_.text("rebalance") == "restart") {
      return invalid_input(
          "--rebalance restart: servers that were not started here (--router) cannot be started again");
    }
    if (flags_.text("half") != "prefill") plans_.push_back(decode_plan());
    if (flags_.text("half") != "decode") plans_.push_back(prefill_plan());
    char host[256] = "";
    gethostname(host, sizeof(host) - 1);
    report_.host = fmt::format("{} ({} CPUs)", host, num_usable_cpus());
    report_.version = TANDEM_VERSION;
    report_.started_utc = utc_now();
    for (const Flag& flag : kFlags) {
      const std::string name = field_name(flag);
      if (flags_.has(name)) report_.configuration.emplace_back(std::string(flag.names), value_text(flag, name));
    }
    return Ok{};
  }

  std::string value_text(const Flag& flag, const std::string& name) const {
    switch (flag.kind) {
      case kInt: return fmt::to_string(flags_.integer(name));
      case kFloat: return fmt::format("{:g}", flags_.number(name));
      default: return std::string_view(flag.names).ends_with("api-key") ? "(given)" : flags_.text(name);
    }
  }

  HalfPlan common_plan() const {
    HalfPlan plan;
    plan.saturate_timeout = from_seconds(flags_.number("saturate_timeout"));
    plan.settle = from_seconds(flags_.number("settle"));
    plan.settle_timeout = from_seconds(flags_.number("settle_timeout"));
    plan.window = from_seconds(flags_.number("window"));
    plan.profile_steps = int32_t(flags_.integer("profile_steps"));
    plan.record = from_seconds(flags_.number("record"));
    plan.algorithm = flags_.text("eplb_algorithm");
    plan.limits.variation = flags_.number("max_variation");
    plan.limits.imbalance = flags_.number("max_imbalance");
    plan.trace_directory = output_;
    plan.load.num_prompts = 20000;
    if (flags_.has("model_path")) plan.load.tokenizer = flags_.text("model_path");
    return plan;
  }

  std::string describe(const Split& split) const {
    return fmt::format("{} prefill x {} ranks, {} decode x {} ranks", split.prefill, flags_.integer("prefill_ranks"),
                       split.decode, flags_.integer("decode_ranks"));
  }

  HalfPlan decode_plan() const {
    HalfPlan plan = common_plan();
    plan.name = "decode-bound";
    plan.role = workflow::Role::kDecode;
    plan.split = describe(decode_split_);
    plan.target_running = int32_t(flags_.integer("running_per_rank"));
    plan.load.input_len = int32_t(flags_.integer("decode_input_len"));
    plan.load.output_len = int32_t(flags_.integer("decode_output_len"));
    plan.load.range_ratio = flags_.number("range_ratio");
    // Half as many again wait with their caches handed over, so that no place stays empty.
    const int64_t ranks = decode_split_.decode * flags_.integer("decode_ranks");
    plan.load.at_once = int32_t(plan.target_running * ranks * 3 / 2);
    plan.rebalance = flags_.text("rebalance") == "live";
    return plan;
  }

  HalfPlan prefill_plan() const {
    HalfPlan plan = common_plan();
    plan.name = "prefill-bound";
    plan.role = workflow::Role::kPrefill;
    plan.split = describe(prefill_split_);
    plan.load.input_len = int32_t(flags_.integer("prefill_input_len"));
    plan.load.output_len = int32_t(flags_.integer("prefill_output_len"));
    plan.load.range_ratio = 1;
    plan.load.at_once = int32_t(prefill_split_.prefill * flags_.integer("prefill_ranks") * 8);
    plan.rebalance = false;  // its ranks are balanced by the same experts; the decode-bound half shows the gain
    return plan;
  }

  FleetConfig fleet_config(const HalfPlan& plan) const {
    const bool decode_bound = plan.role == workflow::Role::kDecode;
    const Split& split = decode_bound ? decode_split_ : prefill_split_;
    FleetConfig config;
    if (flags_.has("model_path")) config.model = flags_.text("model_path");
    config.num_prefill = split.prefill;
    config.num_decode = split.decode;
    config.server_args = {"--page-size", "16"};
    const auto add_ranks = [](std::vector<std::string>& args, int64_t ranks) {
      if (ranks == 1) return;
      const std::string count = fmt::to_string(ranks);
      args.insert(args.end(),
                  {"--tp-size", count, "--dp-size", count, "--enable-dp-attention", "--eplb-spare-slots", "4"});
    };
    add_ranks(config.prefill_args, flags_.integer("prefill_ranks"));
    add_ranks(config.decode_args, flags_.integer("decode_ranks"));
    if (decode_bound) {
      const int64_t running = flags_.integer("running_per_rank") * flags_.integer("decode_ranks");
      config.decode_args.insert(config.decode_args.end(), {"--max-running-requests", fmt::to_string(running)});
    } else {
      // Every prompt is computed: a cached prefix would make prefill look faster than it is.
      config.prefill_args.push_back("--disable-radix-cache");
    }
    for (const std::string& word : words_of(flags_.text("server_args"))) config.server_args.push_back(word);
    for (const std::string& word : words_of(flags_.text("decode_args"))) config.decode_args.push_back(word);
    config.log_dir = fmt::format("{}/logs-{}", output_, plan.name);
    config.quiet = true;
    return config;
  }

  Result<HalfReport> run_on(const std::string& url, const HalfPlan& plan) {
    const std::string authorization = client_authorization(flags_);
    ASSIGN_OR_RETURN(const std::vector<Target> targets, router_targets(url, "all", authorization));
    std::vector<workflow::Instance> instances;
    for (const Target& target : targets) {
      const workflow::Role role = target.role == "prefill"  ? workflow::Role::kPrefill
                                  : target.role == "decode" ? workflow::Role::kDecode
                                                            : workflow::Role::kCombined;
      instances.push_back({role, target.url});
    }
    const workflow::Deployment deployment(url, std::move(instances), authorization, clock_, zero_);
    workflow::HalfParts parts;
    parts.deployment = &deployment;
    parts.clock = &clock_;
    parts.print = print;
    parts.wait = [](Duration length) {
      std::this_thread::sleep_for(length);
      return signals_seen() == 0;
    };
    return workflow::run_half(plan, parts);
  }

  Status attach(const HalfPlan& plan) {
    print(fmt::format("{} ({})\n", plan.name, flags_.text("router")));
    ASSIGN_OR_RETURN(HalfReport half, run_on(flags_.text("router"), plan));
    half.split = "as attached: " + flags_.text("router");
    report_.halves.push_back(std::move(half));
    return Ok{};
  }

  // With --rebalance restart the placement changes by a second start.
  bool restarts(const HalfPlan& plan) const {
    return flags_.text("rebalance") == "restart" && plan.role == workflow::Role::kDecode &&
           plan.record > Duration::zero();
  }

  static HalfPlan restarted_plan(HalfPlan plan) {
    plan.profile_steps = 0;  // as behind a live rebalance
    return plan;
  }

  double expected_s(const HalfPlan& plan) const {
    double total = seconds(workflow::expected_time(plan)) + kStartSeconds;
    if (restarts(plan)) total += seconds(workflow::expected_time(restarted_plan(plan))) + kStartSeconds;
    return total;
  }

  Status start_and_run(const HalfPlan& plan) {
    print(fmt::format("{} ({})\n", plan.name, plan.split));
    const FleetConfig config = fleet_config(plan);
    ASSIGN_OR_RETURN(HalfReport half, run_fleet(config, plan));
    Status again = Ok{};
    if (restarts(plan) && half.before && half.before->experts) again = measure_restarted(config, plan, half);
    report_.halves.push_back(std::move(half));  // what was measured first stands, whatever came of the second start
    return again;
  }

  // Fills half.after from a second start of the fleet, with the placement planned from what the first recorded.
  Status measure_restarted(FleetConfig config, const HalfPlan& plan, HalfReport& half) {
    config.decode_args.insert(config.decode_args.end(), {"--init-expert-location", half.before->experts->files[0]});
    config.log_dir += "-restarted";
    ASSIGN_OR_RETURN(HalfReport second, run_fleet(config, restarted_plan(plan)));
    half.after = std::move(second.before);
    for (workflow::StageRecord& stage : second.stages) {
      stage.name += " again";
      half.stages.push_back(std::move(stage));
    }
    half.samples.insert(half.samples.end(), second.samples.begin(), second.samples.end());
    if (!half.after) return not_found("no window was measured after the restart");
    return Ok{};
  }

  Result<HalfReport> run_fleet(const FleetConfig& config, const HalfPlan& plan) {
    Fleet fleet(config);
    RETURN_IF_ERROR(fleet.start());
    for (const std::string& command : fleet.commands()) report_.commands.push_back(command);
    Result<HalfReport> half = run_on(fleet.url(), plan);
    const std::optional<std::string> dead = fleet.dead();
    if (!fleet.stop() || dead) {
      report_.faults.push_back(fmt::format("{}: {}", plan.name, dead.value_or("a server did not leave cleanly")));
    }
    return half;
  }

  const FlagValues& flags_;
  const SystemClock clock_;
  const TimePoint zero_;
  std::string output_;
  Split decode_split_, prefill_split_;
  std::vector<HalfPlan> plans_;
  double expected_end_s_ = 0;
  ReproduceReport report_;
};

Status write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.flush();
  if (!file) return invalid_input(fmt::format("{}: cannot write", path));
  return Ok{};
}

int finish(const ReproduceReport& report, const std::string& output) {
  for (const auto& [name, text] : {std::pair{"report.json", json::dump(workflow::report_json(report)) + "\n"},
                                   std::pair{"report.html", workflow::report_html(report)}}) {
    if (Status written = write_file(fmt::format("{}/{}", output, name), text); !written) {
      fmt::print(stderr, "tandem reproduce: error: {}\n", written.error().message);
      return 1;
    }
  }
  fmt::print("\nverdict: {}\n", report.valid() ? "valid" : "invalid");
  for (const workflow::Reason& reason : report.reasons()) fmt::print("  {}: {}\n", reason.code, reason.detail);
  fmt::print("{}/report.html\n{}/report.json\n", output, output);
  return report.valid() ? 0 : 1;
}

}  // namespace

int run_reproduce(Args args) {
  Result<ParseOutcome> parsed = parse_flags(
      "reproduce", "Measures a deployment as the seeds do, and says whether the number may be believed.", kFlags, args);
  if (!parsed) {
    fmt::print(stderr, "tandem reproduce: error: {}\n", parsed.error().message);
    return 2;
  }
  if (parsed->help_shown) return 0;
  watch_signals();
  Reproduction reproduction(parsed->values);
  Result<ReproduceReport> report = reproduction.run();
  if (!report) {
    fmt::print(stderr, "tandem reproduce: error: {}\n", report.error().message);
    return report.error().code == ErrorCode::kInvalidInput ? 2 : 1;
  }
  return finish(*report, reproduction.output());
}

}  // namespace tandem::app
