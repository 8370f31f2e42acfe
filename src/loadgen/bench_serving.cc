#include "loadgen/bench_serving.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "base/check.h"
#include "loadgen/profile_servers.h"
#include "loadgen/progress.h"
#include "loadgen/request_body.h"
#include "loadgen/runner.h"
#include "loadgen/target.h"
#include "loadgen/workload.h"

namespace tandem::loadgen {
namespace {

constexpr int32_t kWarmupTokens = 32;

// One benchmark: the steps of run_bench_serving in their order.
class Bench {
 public:
  Bench(const BenchConfig& config, const BenchParts& parts, Target target)
      : config_(config), parts_(parts), backend_(*find_backend(config.backend)), target_(std::move(target)) {}

  Result<Report> run() {
    RETURN_IF_ERROR(resolve_model());
    RETURN_IF_ERROR(make_requests());
    RETURN_IF_ERROR(warm_up());
    if (config_.flush_cache) RETURN_IF_ERROR(target_.flush_cache());
    RETURN_IF_ERROR(start_profiling());
    return measure();
  }

 private:
  void print(std::string_view text) const {
    if (parts_.print) parts_.print(text);
  }

  Status resolve_model() {
    model_ = config_.model;
    if (model_.empty()) {
      auto id = target_.model_id();
      // The native dialect names no model; the tokenizer may still be found elsewhere.
      if (!id && (backend_.dialect != Dialect::kNative || id.error().code != ErrorCode::kNotFound)) return id.error();
      if (id) model_ = *id;
    }
    tokenizer_ = parts_.tokenizer;
    if (tokenizer_ && !config_.apply_chat_template) return Ok{};
    ASSIGN_OR_RETURN(tokenizer_path_, find_tokenizer(config_.tokenizer, model_, target_));
    if (!tokenizer_) {
      ASSIGN_OR_RETURN(tokenizer_, load_tokenizer(tokenizer_path_));
    }
    return Ok{};
  }

  Status make_requests() {
    std::optional<text::ChatTemplate> chat_template;
    if (config_.apply_chat_template) {
      std::filesystem::path directory(tokenizer_path_);
      std::error_code error;
      if (!std::filesystem::is_directory(directory, error)) directory = directory.parent_path();
      ASSIGN_OR_RETURN(chat_template, text::ChatTemplate::load(directory.string()));
    }
    ASSIGN_OR_RETURN(workload_, make_workload(config_, *tokenizer_, chat_template ? &*chat_template : nullptr));
    for (const std::string& note : workload_.notes) print("note: " + note + "\n");
    int64_t input = 0, output = 0;
    for (const WorkItem& item : workload_.items) {
      input += item.input_len;
      output += item.output_len;
    }
    print(fmt::format("#Input tokens: {}\n#Output tokens: {}\n", input, output));
    ASSIGN_OR_RETURN(shape_,
                     request_shape(config_, config_.served_model_name.empty() ? model_ : config_.served_model_name));
    return Ok{};
  }

  Expectation expectation(const WorkItem& item) const {
    return {.dialect = backend_.dialect,
            .stream = streams(shape_),
            .output_len = item.output_len,
            .full_length = expects_full_length(shape_),
            .count_failures_as_success = config_.count_failures_as_success};
  }

  LoadPlan plan_for(size_t count) const {
    LoadPlan plan;
    plan.url = target_.url(backend_.path);
    plan.headers = target_.headers();
    plan.arrivals.assign(count, Duration::zero());
    plan.max_concurrency = config_.max_concurrency;
    plan.request_timeout = config_.request_timeout;
    return plan;
  }

  Status warm_up() {
    if (config_.warmup_requests == 0) return Ok{};
    print(fmt::format("Starting warmup with {} sequences...\n", config_.warmup_requests));
    WorkItem item = workload_.items.front();
    item.output_len = std::min(item.output_len, kWarmupTokens);
    LoadPlan plan = plan_for(size_t(config_.warmup_requests));
    plan.body = [&](size_t) { return request_body(shape_, item); };
    plan.expectation = [&](size_t) { return expectation(item); };
    ASSIGN_OR_RETURN(LoadOutcome outcome, run_load(plan, *parts_.clock, parts_.stop));
    const auto good =
        std::count_if(outcome.results.begin(), outcome.results.end(), [](const auto& r) { return r.success; });
    if (good == 0) {
      return peer_lost(
          fmt::format("Warmup failed - please make sure benchmark arguments are correctly specified. "
                      "Error: {}",
                      outcome.results.front().error));
    }
    print(fmt::format("Warmup completed with {} sequences. Starting main benchmark run...\n", good));
    return Ok{};
  }

  // The servers named, or the one under test; behind a router all of its servers.
  Status start_profiling() {
    if (!config_.profile) return Ok{};
    ProfileOrder order;
    order.urls = config_.profile_prefill_url.empty() ? config_.profile_decode_url : config_.profile_prefill_url;
    if (order.urls.empty()) order.urls.push_back(config_.origin());
    order.authorization = config_.authorization;
    if (config_.profile_num_steps) order.num_steps = *config_.profile_num_steps;
    order.activities = config_.profile_activities;
    order.stages = config_.profile_stages;
    order.by_stage = config_.profile_by_stage;
    print("Starting profiler...\n");
    ASSIGN_OR_RETURN(profiled_, start_profiles(order));
    print("Profiler started\n");
    return Ok{};
  }

  Status stop_profiling() {
    if (profiled_.empty() || config_.profile_num_steps) return Ok{};
    print("Stopping profiler...\n");
    RETURN_IF_ERROR(stop_profiles(profiled_, config_.authorization));
    print("Profiler stopped\n");
    return Ok{};
  }

  Result<Report> measure() {
    const std::vector<WorkItem>& items = workload_.items;
    LoadPlan plan = plan_for(items.size());
    plan.arrivals = arrival_times(items.size(), config_.request_rate, config_.seed);
    plan.body = [&](size_t index) { return request_body(shape_, items[index]); };
    plan.expectation = [&](size_t index) { return expectation(items[index]); };
    ProgressLine line(config_.disable_tqdm ? nullptr : parts_.progress, parts_.terminal, items.size(),
                      parts_.clock->now());
    plan.progress = [&](size_t done, size_t failed, TimePoint now) { line.update(done, failed, now); };
    ASSIGN_OR_RETURN(LoadOutcome outcome, run_load(plan, *parts_.clock, parts_.stop));
    RETURN_IF_ERROR(stop_profiling());

    json::Value server_info = nullptr;
    std::optional<double> accept_length;
    if (auto info = target_.server_info()) {
      server_info = to_value(info->root());
      accept_length = internal_state_number(info->root(), "avg_spec_accept_length");
    }
    const TimePoint end = parts_.clock->now();
    for (size_t i = 0; i < items.size(); ++i) outcome.results[i].input_len = items[i].input_len;
    Report report = make_report(outcome.results, seconds(end - outcome.start), accept_length, backend_, *tokenizer_);
    line.finish(items.size(), size_t(report.failures.count), end);
    if (config_.print_requests) print_requests(outcome.results);
    print(format_block(report, config_));
    print(format_failures(report, items.size()));
    RETURN_IF_ERROR(save(format_jsonl(report, config_, server_info, outcome.results)));
    return report;
  }

  void print_requests(std::span<const RequestResult> results) const {
    for (size_t i = 0; i < results.size(); ++i) {
      print(fmt::format("request {}\nprompt: {}\nanswer: {}\n", i, workload_.items[i].text,
                        results[i].success ? results[i].generated_text : "(failed) " + results[i].error));
    }
  }

  Status save(const std::string& line) const {
    if (!config_.save_results) return Ok{};
    const std::string path =
        config_.output_file.empty() ? default_output_file(config_, parts_.clock->unix_seconds()) : config_.output_file;
    std::ofstream file(path, std::ios::app | std::ios::binary);
    file << line;
    file.flush();
    if (!file) return invalid_input(fmt::format("--output-file {}: cannot write", path));
    return Ok{};
  }

  const BenchConfig& config_;
  const BenchParts& parts_;
  const Backend& backend_;
  Target target_;
  std::string model_, tokenizer_path_;
  std::shared_ptr<const text::Tokenizer> tokenizer_;
  Workload workload_;
  std::vector<ProfiledServer> profiled_;
  RequestShape shape_;
};

}  // namespace

Result<Report> run_bench_serving(const BenchConfig& config, const BenchParts& parts) {
  CHECK(parts.clock);
  RETURN_IF_ERROR(config.validate());
  ASSIGN_OR_RETURN(Target target, Target::create(config.origin(), config.authorization));
  return Bench(config, parts, std::move(target)).run();
}

}  // namespace tandem::loadgen
