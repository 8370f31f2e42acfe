#include "loadgen/one_batch.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>

#include "base/check.h"
#include "loadgen/batch_call.h"
#include "loadgen/profile_servers.h"
#include "loadgen/target.h"
#include "loadgen/workload.h"

namespace tandem::loadgen {
namespace {

using Element = simdjson::dom::element;

constexpr int32_t kWarmupInput = 1024, kWarmupOutput = 16;
constexpr int32_t kMaxBatch = 1 << 20, kMaxLen = 1 << 24;

double capacity_of(Element info, bool& said) {
  double sum = 0, tokens = 0;
  simdjson::dom::array states;
  if (info["internal_states"].get(states)) return 0;
  for (Element state : states) {
    if (state["memory_usage"]["token_capacity"].get(tokens)) continue;
    said = true;
    sum += tokens;
  }
  return sum;
}

// Written straight into one string: batches of tens of millions of ids happen.
std::string batch_body(const OneBatchConfig& config, const std::vector<WorkItem>& items, int32_t output_len) {
  std::string body = "{\"input_ids\":[";
  for (size_t i = 0; i < items.size(); ++i) {
    body += i ? ",[" : "[";
    for (size_t j = 0; j < items[i].ids.size(); ++j) {
      fmt::format_to(std::back_inserter(body), "{}{}", j ? "," : "", items[i].ids[j]);
    }
    body += ']';
  }
  const json::Object sampling{{"temperature", config.temperature},
                              {"max_new_tokens", output_len},
                              {"ignore_eos", true},
                              {"stream_interval", config.client_stream_interval}};
  fmt::format_to(std::back_inserter(body), "],\"sampling_params\":{},\"return_logprob\":{},\"stream\":true}}",
                 json::dump(sampling), config.return_logprob);
  return body;
}

class OneBatch {
 public:
  OneBatch(const OneBatchConfig& config, const BenchParts& parts, Target target)
      : config_(config), parts_(parts), target_(std::move(target)) {}

  Result<std::vector<OneBatchResult>> run() {
    RETURN_IF_ERROR(prepare());
    if (!config_.skip_warmup) RETURN_IF_ERROR(warm_up());
    std::vector<OneBatchResult> results;
    for (int32_t batch : config_.batch_size) {
      for (int32_t input : config_.input_len) {
        for (int32_t output : config_.output_len) {
          if (!fits(batch, input, output)) continue;
          ASSIGN_OR_RETURN(OneBatchResult result, run_case(batch, input, output));
          print(format_one_batch(result));
          RETURN_IF_ERROR(save(one_batch_jsonl(result)));
          results.push_back(std::move(result));
        }
      }
    }
    if (config_.profile) RETURN_IF_ERROR(profile_all(results));
    if (!config_.result_filename.empty()) print(fmt::format("\nResults are saved to {}\n", config_.result_filename));
    if (config_.show_report) print("\n" + one_batch_table(results, config_.dollars_per_hour));
    return results;
  }

 private:
  void print(std::string_view text) const {
    if (parts_.print) parts_.print(text);
  }

  Status prepare() {
    ASSIGN_OR_RETURN(json::Document info, target_.server_info());
    capacity_ = token_capacity(info.root()).value_or(1e9);
    tokenizer_ = parts_.tokenizer;
    if (tokenizer_) return Ok{};
    ASSIGN_OR_RETURN(std::string path, find_tokenizer(config_.tokenizer, "", target_));
    ASSIGN_OR_RETURN(tokenizer_, load_tokenizer(path));
    return Ok{};
  }

  bool fits(int32_t batch, int32_t input, int32_t output) const {
    const double needed = double(batch) * (double(input) + output);
    if (needed <= capacity_) return true;
    print(fmt::format("skipped: batch size {} x ({} + {}) tokens is above the server's {:.0f}\n", batch, input, output,
                      capacity_));
    return false;
  }

  Status warm_up() {
    for (int32_t batch : config_.batch_size) {
      if (!fits(batch, kWarmupInput, kWarmupOutput)) continue;
      auto warm = run_case(batch, kWarmupInput, kWarmupOutput);
      if (!warm) return Error{warm.error().code, "warm-up (--skip-warmup leaves it out): " + warm.error().message};
    }
    return Ok{};
  }

  // Measured figures stay those of the runs without it.
  Status profile_all(const std::vector<OneBatchResult>& cases) {
    for (const OneBatchResult& one : cases) {
      ProfileOrder order;
      order.urls = {config_.base_url};
      order.authorization = config_.authorization;
      order.output_dir = config_.profile_output_dir;
      order.num_steps = config_.profile_steps;
      order.by_stage = config_.profile_by_stage;
      order.prefix = fmt::format("{}{}bs-{}-il-{}", config_.profile_prefix, config_.profile_prefix.empty() ? "" : "-",
                                 one.batch_size, one.input_len);
      ASSIGN_OR_RETURN(const std::vector<ProfiledServer> profiled, start_profiles(order));
      print(fmt::format("profiling {} steps: {}\n", config_.profile_steps, order.prefix));
      ASSIGN_OR_RETURN(const OneBatchResult again, run_case(one.batch_size, one.input_len, one.output_len));
      // Too few steps for the window to end by itself: what there is gets written. Where it has ended there is nothing
      // to stop, which is no error here.
      static_cast<void>(stop_profiles(profiled, config_.authorization));
    }
    return Ok{};
  }

  Result<OneBatchResult> run_case(int32_t batch, int32_t input, int32_t output) {
    RETURN_IF_ERROR(target_.flush_cache());
    BenchConfig data;
    data.dataset_name = "random";
    data.dataset_path = config_.dataset_path;
    data.num_prompts = batch;
    data.random_input_len = input;
    data.random_output_len = output;
    data.random_range_ratio = 1;
    data.tokenize_prompt = true;
    data.seed = config_.seed;
    ASSIGN_OR_RETURN(Workload workload, make_workload(data, *tokenizer_, nullptr));
    if (workload.items.size() != size_t(batch)) {
      return invalid_input(fmt::format("--dataset-path {}: {} usable prompts for a batch of {}", config_.dataset_path,
                                       workload.items.size(), batch));
    }
    BatchRequest request;
    request.url = target_.url("/generate");
    request.headers = target_.headers();
    request.body = batch_body(config_, workload.items, output);
    request.batch_size = batch;
    request.timeout = config_.request_timeout;
    auto times = run_batch(std::move(request), *parts_.clock, parts_.stop);
    if (!times) {
      return Error{times.error().code,
                   fmt::format("batch size {}, input {}, output {}: {}", batch, input, output, times.error().message)};
    }
    return figures(batch, input, output, *times);
  }

  Result<OneBatchResult> figures(int32_t batch, int32_t input, int32_t output, BatchTimes times) const {
    OneBatchResult result{.run_name = config_.run_name, .batch_size = batch, .input_len = input, .output_len = output};
    result.latency_s = times.latency_s;
    result.last_ttft_s = times.last_ttft_s;
    const double decode_s = times.latency_s - times.last_ttft_s;
    result.input_throughput = double(batch) * input / times.last_ttft_s;
    result.output_throughput = decode_s > 0 ? double(batch) * output / decode_s : 0;
    result.overall_throughput = double(batch) * (double(input) + output) / times.latency_s;
    ASSIGN_OR_RETURN(json::Document info, target_.server_info());
    result.last_gen_throughput = internal_state_number(info.root(), "last_gen_throughput").value_or(-1);
    result.acc_length = internal_state_number(info.root(), "avg_spec_accept_length").value_or(-1);
    return result;
  }

  Status save(const std::string& line) const {
    if (config_.result_filename.empty()) return Ok{};
    std::ofstream file(config_.result_filename, std::ios::app | std::ios::binary);
    file << line;
    file.flush();
    if (!file) return invalid_input(fmt::format("--result-filename {}: cannot write", config_.result_filename));
    return Ok{};
  }

  const OneBatchConfig& config_;
  const BenchParts& parts_;
  Target target_;
  std::shared_ptr<const text::Tokenizer> tokenizer_;
  double capacity_ = 0;
};

Status check_list(const char* flag, const std::vector<int32_t>& values, int32_t most) {
  if (values.empty()) return invalid_input(fmt::format("{} needs at least one value", flag));
  for (int32_t value : values) {
    if (value < 1 || value > most) {
      return invalid_input(fmt::format("{} must be between 1 and {}, got {}", flag, most, value));
    }
  }
  return Ok{};
}

double rounded(double value, int places) {
  const double scale = std::pow(10, places);
  return std::round(value * scale) / scale;
}

}  // namespace

Status OneBatchConfig::validate() const {
  if (base_url.empty()) return invalid_input("--base-url is required: start the server with launch_server or up");
  auto url = net::parse_url(base_url);
  if (!url) return invalid_input(fmt::format("--base-url {}: {}", base_url, url.error().message));
  RETURN_IF_ERROR(check_list("--batch-size", batch_size, kMaxBatch));
  RETURN_IF_ERROR(check_list("--input-len", input_len, kMaxLen));
  RETURN_IF_ERROR(check_list("--output-len", output_len, kMaxLen));
  if (!(temperature >= 0)) return invalid_input(fmt::format("--temperature must be at least 0, got {}", temperature));
  if (client_stream_interval < 1) return invalid_input("--client-stream-interval must be at least 1");
  if (request_timeout <= Duration::zero()) return invalid_input("the request timeout must be above 0");
  return Ok{};
}

std::optional<double> token_capacity(Element server_info) {
  bool said = false;
  double sum = capacity_of(server_info, said);
  simdjson::dom::array decode;
  if (!said && !server_info["decode"].get(decode)) {
    for (Element server : decode) sum += capacity_of(server, said);
  }
  return said ? std::optional(sum) : std::nullopt;
}

std::string format_one_batch(const OneBatchResult& r) {
  std::string out = fmt::format("batch size: {}\ninput_len: {}\noutput_len: {}\nlatency: {:.2f} s\n", r.batch_size,
                                r.input_len, r.output_len, r.latency_s);
  out += fmt::format("input throughput: {:.2f} tok/s\n", r.input_throughput);
  if (r.output_len != 1) out += fmt::format("output throughput: {:.2f} tok/s\n", r.output_throughput);
  out += fmt::format("last_ttft: {:.2f} s\n", r.last_ttft_s);
  out += fmt::format("last generation throughput: {:.2f} tok/s\n", r.last_gen_throughput);
  if (r.acc_length > 0) out += fmt::format("acc_length: {:.2f} \n", r.acc_length);
  return out;
}

std::string one_batch_jsonl(const OneBatchResult& r) {
  json::Object line;
  line["run_name"] = r.run_name;
  line["batch_size"] = r.batch_size;
  line["input_len"] = r.input_len;
  line["output_len"] = r.output_len;
  line["latency"] = rounded(r.latency_s, 4);
  line["input_throughput"] = rounded(r.input_throughput, 2);
  line["output_throughput"] = rounded(r.output_throughput, 2);
  line["overall_throughput"] = rounded(r.overall_throughput, 2);
  line["last_ttft"] = rounded(r.last_ttft_s, 4);
  line["last_gen_throughput"] = rounded(r.last_gen_throughput, 2);
  line["acc_length"] = rounded(r.acc_length, 2);
  return python_json(line) + "\n";
}

std::string one_batch_table(std::span<const OneBatchResult> results, double dollars_per_hour) {
  const bool cost = dollars_per_hour > 0;
  std::string out =
      "| batch size | input len | latency (s) | input throughput (tok/s) | output throughput (tok/s) | "
      "acc length | ITL (ms) |";
  out += cost ? " input cost ($/1M) | output cost ($/1M) |\n" : "\n";
  out += "| --- | --- | --- | --- | --- | --- | --- |";
  out += cost ? " --- | --- |\n" : "\n";
  for (const OneBatchResult& r : results) {
    const double itl_ms = r.output_throughput > 0 ? 1000.0 * r.batch_size / r.output_throughput : 0;
    out += fmt::format("| {} | {} | {:.2f} | {:.2f} | {:.2f} | {} | {:.2f} |", r.batch_size, r.input_len, r.latency_s,
                       r.input_throughput, r.output_throughput,
                       r.acc_length > 0 ? fmt::format("{:.2f}", r.acc_length) : "n/a", itl_ms);
    if (cost) {
      auto per_million = [&](double rate) { return rate > 0 ? dollars_per_hour / 3600 / rate * 1e6 : 0; };
      out += fmt::format(" {:.2f} | {:.2f} |", per_million(r.input_throughput), per_million(r.output_throughput));
    }
    out += "\n";
  }
  return out;
}

Result<std::vector<OneBatchResult>> run_one_batch(const OneBatchConfig& config, const BenchParts& parts) {
  CHECK(parts.clock);
  RETURN_IF_ERROR(config.validate());
  ASSIGN_OR_RETURN(Target target, Target::create(config.base_url, config.authorization));
  return OneBatch(config, parts, std::move(target)).run();
}

}  // namespace tandem::loadgen
