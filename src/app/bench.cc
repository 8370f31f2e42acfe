#include "app/bench.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <thread>

#include "app/commands.h"
#include "app/environment.h"
#include "app/flags.h"
#include "app/signals.h"
#include "loadgen/bench_serving.h"
#include "loadgen/one_batch.h"

namespace tandem::app {
namespace {

using enum FlagKind;
using enum FlagSupport;

constexpr const char* kBackends =
    "sglang|sglang-native|sglang-oai|sglang-oai-chat|vllm|vllm-chat|lmdeploy|lmdeploy-chat";

constexpr Flag kServingFlags[] = {
    {"--backend", kString, "sglang", kBackends, kWorks, "form of the requests"},
    {"--base-url", kString, nullptr, nullptr, kWorks, "http://host:port of the server or router"},
    {"--host", kString, "0.0.0.0", nullptr, kWorks, "where --base-url is not given"},
    {"--port", kInt, nullptr, nullptr, kWorks, "default 30000 (sglang*), 8000 (others)"},
    {"--dataset-name", kString, "sharegpt", "sharegpt|random|random-ids|generated-shared-prefix", kWorks, "workload"},
    {"--dataset-path", kString, "", nullptr, kWorks, "ShareGPT file: JSON list, or one object a line"},
    {"--model", kString, "", nullptr, kWorks, "default: the first of /v1/models"},
    {"--served-model-name", kString, "", nullptr, kWorks, "what requests carry as model"},
    {"--tokenizer", kString, "", nullptr, kWorks, "directory or tokenizer.json (default: the server's)"},
    {"--num-prompts", kInt, "1000", nullptr, kWorks, "requests"},
    {"--sharegpt-output-len", kInt, nullptr, nullptr, kWorks, "output length in place of the data set's"},
    {"--sharegpt-context-len", kInt, nullptr, nullptr, kWorks, "drop longer conversations"},
    {"--random-input-len", kInt, "1024", nullptr, kWorks, "longest input"},
    {"--random-output-len", kInt, "1024", nullptr, kWorks, "longest output"},
    {"--random-range-ratio", kFloat, "0.0", nullptr, kWorks, "shortest length as a share of the longest; 1: fixed"},
    {"--gsp-num-groups", kInt, "64", nullptr, kWorks, "shared prefixes"},
    {"--gsp-prompts-per-group", kInt, "16", nullptr, kWorks, "questions per prefix"},
    {"--gsp-system-prompt-len", kInt, "2048", nullptr, kWorks, "tokens of a prefix"},
    {"--gsp-question-len", kInt, "128", nullptr, kWorks, "tokens of a question"},
    {"--gsp-output-len", kInt, "256", nullptr, kWorks, "tokens of an answer"},
    {"--request-rate", kFloat, "inf", nullptr, kWorks, "requests/s (Poisson); inf: all at once"},
    {"--max-concurrency", kInt, nullptr, nullptr, kWorks, "requests at a time"},
    {"--warmup-requests", kInt, "1", nullptr, kWorks, "copies of the first prompt before the run"},
    {"--flush-cache", kSwitch, nullptr, nullptr, kWorks, "POST /flush_cache after the warm-up"},
    {"--seed", kInt, "1", nullptr, kWorks, "of workload and arrivals"},
    {"--disable-stream", kSwitch, nullptr, nullptr, kWorks, "one answer per request"},
    {"--disable-ignore-eos", kSwitch, nullptr, nullptr, kWorks, "let answers end by themselves"},
    {"--return-logprob", kSwitch, nullptr, nullptr, kWorks, "ask for log-probabilities"},
    {"--tokenize-prompt", kSwitch, nullptr, nullptr, kWorks, "send token ids"},
    {"--apply-chat-template", kSwitch, nullptr, nullptr, kWorks, "wrap sharegpt prompts"},
    {"--prompt-suffix", kString, "", nullptr, kWorks, "appended to sharegpt prompts"},
    {"--extra-request-body", kString, "", nullptr, kWorks, "JSON object whose keys replace the request's"},
    {"--output-file", kString, "", nullptr, kWorks, "JSONL to append to"},
    {"--output-details", kSwitch, nullptr, nullptr, kWorks, "per-request arrays in that file"},
    {"--tag", kString, "", nullptr, kWorks, "noted in that file"},
    {"--disable-tqdm", kSwitch, nullptr, nullptr, kWorks, "no progress bar"},
    {"--print-requests", kSwitch, nullptr, nullptr, kWorks, "print each request and answer (chat)"},
    {"--count-failures-as-success", kSwitch, nullptr, nullptr, kWorks,
     "SGLang's counting, to compare with its figures"},
    {"--plot-throughput", kSwitch, nullptr, nullptr, kLater, "plot"},
    {"--profile", kSwitch, nullptr, nullptr, kWorks, "record steps on the servers meanwhile"},
    {"--profile-by-stage", kSwitch, nullptr, nullptr, kWorks, "prefill and decode into files of their own"},
    {"--profile-num-steps", kInt, nullptr, nullptr, kWorks, "steps; else until the end"},
    {"--profile-activities", kStringList, nullptr, nullptr, kWorks, "CPU and GPU"},
    {"--profile-stages", kStringList, nullptr, nullptr, kWorks, "prefill and decode"},
    {"--profile-prefill-url", kStringList, nullptr, nullptr, kWorks, "these servers instead"},
    {"--profile-decode-url", kStringList, nullptr, nullptr, kWorks, "these servers instead"},
    {"--pd-separated", kSwitch, nullptr, nullptr, kWorks, "profile the servers of one of the two flags above"},
};

constexpr Flag kOneBatchFlags[] = {
    {"--base-url", kString, nullptr, nullptr, kWorks, "http://host:port of the server or router"},
    {"--model-path,--model", kString, nullptr, nullptr, kHarmless, "the server knows its model"},
    {"--tokenizer-path", kString, "", nullptr, kWorks, "directory or tokenizer.json (default: the server's)"},
    {"--run-name", kString, "default", nullptr, kWorks, "noted in the results"},
    {"--batch-size", kIntList, "1", nullptr, kWorks, "sequences of the one request"},
    {"--input-len", kIntList, "1024", nullptr, kWorks, "tokens of each prompt"},
    {"--output-len", kIntList, "16", nullptr, kWorks, "tokens of each answer"},
    {"--temperature", kFloat, "0.0", nullptr, kWorks, "of the sampling"},
    {"--return-logprob", kSwitch, nullptr, nullptr, kWorks, "ask for log-probabilities"},
    {"--client-stream-interval", kInt, "1", nullptr, kWorks, "tokens per event"},
    {"--skip-warmup", kSwitch, nullptr, nullptr, kWorks, "no warm-up requests"},
    {"--show-report", kSwitch, nullptr, nullptr, kWorks, "a Markdown table at the end"},
    {"--dataset-path", kString, "", nullptr, kWorks, "content of the prompts"},
    {"--dataset-name", kString, "random", "random", kWorks, "kind of the prompts"},
    {"--result-filename", kString, "result.jsonl", nullptr, kWorks, "JSONL to append to"},
    {"--seed", kInt, "42", nullptr, kWorks, "of the prompts"},
    {"--no-append-to-github-summary", kSwitch, nullptr, nullptr, kHarmless, "there is no such summary"},
    {"--profile", kSwitch, nullptr, nullptr, kWorks, "run every case once more, recorded"},
    {"--profile-steps", kInt, "5", nullptr, kWorks, "steps of a case"},
    {"--profile-by-stage", kSwitch, nullptr, nullptr, kWorks, "prefill and decode into files of their own"},
    {"--profile-prefix", kString, "", nullptr, kWorks, "beginning of the traces' names"},
    {"--profile-output-dir", kString, "", nullptr, kWorks, "on the servers (default: theirs)"},
    {"--parallel-batch", kSwitch, nullptr, nullptr, kLater, "one request per sequence"},
};

std::optional<int32_t> maybe(const FlagValues& flags, const char* field) {
  if (!flags.has(field)) return std::nullopt;
  return int32_t(flags.integer(field));
}

loadgen::BenchConfig serving_config(const FlagValues& flags) {
  loadgen::BenchConfig config;
  config.backend = flags.text("backend");
  if (flags.has("base_url")) config.base_url = flags.text("base_url");
  config.host = flags.text("host");
  config.port = maybe(flags, "port");
  config.authorization = client_authorization();
  config.dataset_name = flags.text("dataset_name");
  config.dataset_path = flags.text("dataset_path");
  config.model = flags.text("model");
  config.served_model_name = flags.text("served_model_name");
  config.tokenizer = flags.text("tokenizer");
  config.num_prompts = int32_t(flags.integer("num_prompts"));
  config.sharegpt_output_len = maybe(flags, "sharegpt_output_len");
  config.sharegpt_context_len = maybe(flags, "sharegpt_context_len");
  config.random_input_len = int32_t(flags.integer("random_input_len"));
  config.random_output_len = int32_t(flags.integer("random_output_len"));
  config.random_range_ratio = flags.number("random_range_ratio");
  config.gsp_num_groups = int32_t(flags.integer("gsp_num_groups"));
  config.gsp_prompts_per_group = int32_t(flags.integer("gsp_prompts_per_group"));
  config.gsp_system_prompt_len = int32_t(flags.integer("gsp_system_prompt_len"));
  config.gsp_question_len = int32_t(flags.integer("gsp_question_len"));
  config.gsp_output_len = int32_t(flags.integer("gsp_output_len"));
  config.request_rate = flags.number("request_rate");
  config.max_concurrency = maybe(flags, "max_concurrency");
  config.warmup_requests = int32_t(flags.integer("warmup_requests"));
  config.flush_cache = flags.enabled("flush_cache");
  config.seed = uint64_t(flags.integer("seed"));
  config.disable_stream = flags.enabled("disable_stream");
  config.disable_ignore_eos = flags.enabled("disable_ignore_eos");
  config.return_logprob = flags.enabled("return_logprob");
  config.tokenize_prompt = flags.enabled("tokenize_prompt");
  config.apply_chat_template = flags.enabled("apply_chat_template");
  config.prompt_suffix = flags.text("prompt_suffix");
  config.extra_request_body = flags.text("extra_request_body");
  config.output_file = flags.text("output_file");
  config.output_details = flags.enabled("output_details");
  config.tag = flags.text("tag");
  config.disable_tqdm = flags.enabled("disable_tqdm");
  config.print_requests = flags.enabled("print_requests");
  config.count_failures_as_success = flags.enabled("count_failures_as_success");
  config.plot_throughput = flags.enabled("plot_throughput");
  config.profile = flags.enabled("profile");
  config.profile_by_stage = flags.enabled("profile_by_stage");
  config.profile_num_steps = maybe(flags, "profile_num_steps");
  config.profile_activities = flags.texts("profile_activities");
  config.profile_stages = flags.texts("profile_stages");
  config.profile_prefill_url = flags.texts("profile_prefill_url");
  config.profile_decode_url = flags.texts("profile_decode_url");
  config.pd_separated = flags.enabled("pd_separated");
  return config;
}

void write_to(std::FILE* file, std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), file);
  std::fflush(file);
}

// Turns the signal flag into a stop request; the wait between looks is short and ends with the run.
class SignalWatch {
 public:
  std::stop_token token() { return source_.get_token(); }

 private:
  std::stop_source source_;
  std::jthread thread_{[this](std::stop_token done) {
    while (!done.stop_requested() && signals_seen() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    if (signals_seen() > 0) source_.request_stop();
  }};
};

int finish(const char* command, const Status& done) {
  if (done) return 0;
  fmt::print(stderr, "tandem {}: error: {}\n", command, done.error().message);
  return done.error().code == ErrorCode::kInvalidInput ? 2 : 1;
}

}  // namespace

namespace {

loadgen::BenchParts parts_on_terminal(const SystemClock& clock, SignalWatch& signals) {
  loadgen::BenchParts parts;
  parts.clock = &clock;
  parts.print = [](std::string_view text) { write_to(stdout, text); };
  parts.progress = [](std::string_view text) { write_to(stderr, text); };
  parts.terminal = isatty(STDERR_FILENO) == 1;
  parts.stop = signals.token();
  return parts;
}

std::vector<int32_t> sizes(const FlagValues& flags, const char* field) {
  std::vector<int32_t> list;
  for (int64_t value : flags.integers(field)) list.push_back(int32_t(value));
  return list;
}

Status one_batch(const FlagValues& flags) {
  for (const Flag& flag : kOneBatchFlags) {
    if (flag.support == kLater && flags.given(field_name(flag))) {
      return invalid_input(fmt::format("{}: not in this version", flag.names));
    }
  }
  loadgen::OneBatchConfig config;
  if (flags.has("base_url")) config.base_url = flags.text("base_url");
  config.authorization = client_authorization();
  config.tokenizer = flags.text("tokenizer_path");
  config.run_name = flags.text("run_name");
  config.batch_size = sizes(flags, "batch_size");
  config.input_len = sizes(flags, "input_len");
  config.output_len = sizes(flags, "output_len");
  config.temperature = flags.number("temperature");
  config.return_logprob = flags.enabled("return_logprob");
  config.client_stream_interval = int32_t(flags.integer("client_stream_interval"));
  config.skip_warmup = flags.enabled("skip_warmup");
  config.show_report = flags.enabled("show_report");
  config.dataset_path = flags.text("dataset_path");
  config.result_filename = flags.text("result_filename");
  config.profile = flags.enabled("profile");
  config.profile_steps = int32_t(flags.integer("profile_steps"));
  config.profile_by_stage = flags.enabled("profile_by_stage");
  config.profile_prefix = flags.text("profile_prefix");
  config.profile_output_dir = flags.text("profile_output_dir");
  config.seed = uint64_t(flags.integer("seed"));
  const SystemClock clock;
  SignalWatch signals;
  RETURN_IF_ERROR(loadgen::run_one_batch(config, parts_on_terminal(clock, signals)));
  return Ok{};
}

}  // namespace

Status run_and_print(const loadgen::BenchConfig& config) {
  const SystemClock clock;
  SignalWatch signals;
  ASSIGN_OR_RETURN(loadgen::Report report, loadgen::run_bench_serving(config, parts_on_terminal(clock, signals)));
  if (report.failures.count > 0) {
    return peer_lost(
        fmt::format("{} of {} requests failed", report.failures.count, report.failures.count + report.completed));
  }
  return Ok{};
}

int run_bench_serving(Args args) {
  Result<ParseOutcome> parsed = parse_flags(
      "bench_serving", "Sends many requests at a rate and prints what came back how fast.", kServingFlags, args);
  if (!parsed) return finish("bench_serving", parsed.error());
  if (parsed->help_shown) return 0;
  watch_signals();
  return finish("bench_serving", run_and_print(serving_config(parsed->values)));
}

int run_bench_one_batch(Args args) {
  Result<ParseOutcome> parsed = parse_flags(
      "bench_one_batch_server", "Sends a whole batch in one request and prints its speed.", kOneBatchFlags, args);
  if (!parsed) return finish("bench_one_batch_server", parsed.error());
  if (parsed->help_shown) return 0;
  watch_signals();
  return finish("bench_one_batch_server", one_batch(parsed->values));
}

}  // namespace tandem::app
