// How a Report is printed and saved.
#include <fmt/format.h>

#include <cmath>
#include <ctime>

#include "loadgen/report.h"

namespace tandem::loadgen {
namespace {

void title(std::string& out, std::string_view text, char fill) {
  out += fill == '=' ? fmt::format("{:=^50}\n", text) : fmt::format("{:-^50}\n", text);
}
void row(std::string& out, std::string_view label, std::string_view value) {
  out += fmt::format("{:<40} {:<10}\n", label, value);
}
void row(std::string& out, std::string_view label, double value) { row(out, label, fmt::format("{:.2f}", value)); }
void row(std::string& out, std::string_view label, int64_t value) { row(out, label, fmt::to_string(value)); }

void spread_keys(json::Object& line, std::string_view name, const Spread& spread, bool p95) {
  auto set = [&](std::string_view kind, double value) { line[fmt::format("{}_{}_ms", kind, name)] = value; };
  set("mean", spread.mean);
  set("median", spread.median);
  set("std", spread.std);
  if (p95) set("p95", spread.p95);
  set("p99", spread.p99);
}

void setup_keys(json::Object& line, const BenchConfig& config) {
  auto optional = [](const std::optional<int32_t>& value) {
    return value ? json::Value(*value) : json::Value(nullptr);
  };
  line["tag"] = config.tag.empty() ? json::Value(nullptr) : json::Value(config.tag);
  line["backend"] = config.backend;
  line["dataset_name"] = config.dataset_name;
  line["request_rate"] = config.request_rate;
  line["max_concurrency"] = optional(config.max_concurrency);
  line["sharegpt_output_len"] = optional(config.sharegpt_output_len);
  line["random_input_len"] = config.random_input_len;
  line["random_output_len"] = config.random_output_len;
  line["random_range_ratio"] = config.random_range_ratio;
}

void detail_keys(json::Object& line, std::span<const RequestResult> results) {
  json::Array input_lens, output_lens, ttfts, itls, texts, errors;
  for (const RequestResult& r : results) {
    input_lens.push_back(r.input_len);
    output_lens.push_back(r.success ? r.output_len : 0);
    ttfts.push_back(r.ttft_s.value_or(0));
    itls.push_back(json::Array(r.itls_s.begin(), r.itls_s.end()));
    texts.push_back(json::Value(r.generated_text));
    errors.push_back(json::Value(r.error));
  }
  line["input_lens"] = std::move(input_lens);
  line["output_lens"] = std::move(output_lens);
  line["ttfts"] = std::move(ttfts);
  line["itls"] = std::move(itls);
  line["generated_texts"] = std::move(texts);
  line["errors"] = std::move(errors);
}

void write_python(std::string& out, const json::Value& value) {
  if (value.is_double()) {
    const double number = value.get_double();
    if (std::isnan(number)) {
      out += "NaN";
    } else if (std::isinf(number)) {
      out += number > 0 ? "Infinity" : "-Infinity";
    } else {
      out += python_float(number);
    }
  } else if (value.is_array()) {
    out += '[';
    for (const json::Value& child : value.get_array()) {
      if (&child != value.get_array().begin()) out += ", ";
      write_python(out, child);
    }
    out += ']';
  } else if (value.is_object()) {
    out += '{';
    for (auto it = value.get_object().begin(); it != value.get_object().end(); ++it) {
      if (it != value.get_object().begin()) out += ", ";
      out += json::dump(json::Value(it->key())) + ": ";
      write_python(out, it->value());
    }
    out += '}';
  } else {
    out += json::dump(value);
  }
}

}  // namespace

std::string python_float(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

std::string python_json(const json::Value& value) {
  std::string out;
  write_python(out, value);
  return out;
}

std::string format_block(const Report& r, const BenchConfig& config) {
  std::string out = "\n";
  title(out, " Serving Benchmark Result ", '=');
  row(out, "Backend:", config.backend);
  row(out, "Traffic request rate:", python_float(config.request_rate));
  row(out, "Max request concurrency:", config.max_concurrency ? fmt::to_string(*config.max_concurrency) : "not set");
  row(out, "Successful requests:", r.completed);
  row(out, "Benchmark duration (s):", r.duration_s);
  row(out, "Total input tokens:", r.total_input_tokens);
  row(out, "Total input text tokens:", r.total_input_tokens);
  row(out, "Total input vision tokens:", int64_t(0));
  row(out, "Total generated tokens:", r.total_output_tokens);
  row(out, "Total generated tokens (retokenized):", r.total_output_tokens_retokenized);
  row(out, "Request throughput (req/s):", r.request_throughput);
  row(out, "Input token throughput (tok/s):", r.input_throughput);
  row(out, "Output token throughput (tok/s):", r.output_throughput);
  row(out, "Peak output token throughput (tok/s):", r.max_output_tokens_per_s);
  row(out, "Peak concurrent requests:", r.max_concurrent_requests);
  row(out, "Total token throughput (tok/s):", r.total_throughput);
  row(out, "Concurrency:", r.concurrency);
  if (r.accept_length.value_or(0) > 0) row(out, "Accept length:", *r.accept_length);
  title(out, "End-to-End Latency", '-');
  row(out, "Mean E2E Latency (ms):", r.e2e.mean);
  row(out, "Median E2E Latency (ms):", r.e2e.median);
  title(out, "Time to First Token", '-');
  row(out, "Mean TTFT (ms):", r.ttft.mean);
  row(out, "Median TTFT (ms):", r.ttft.median);
  row(out, "P99 TTFT (ms):", r.ttft.p99);
  title(out, "Time per Output Token (excl. 1st token)", '-');
  row(out, "Mean TPOT (ms):", r.tpot.mean);
  row(out, "Median TPOT (ms):", r.tpot.median);
  row(out, "P99 TPOT (ms):", r.tpot.p99);
  title(out, "Inter-Token Latency", '-');
  row(out, "Mean ITL (ms):", r.itl.mean);
  row(out, "Median ITL (ms):", r.itl.median);
  row(out, "P95 ITL (ms):", r.itl.p95);
  row(out, "P99 ITL (ms):", r.itl.p99);
  row(out, "Max ITL (ms):", r.itl.max);
  title(out, "", '=');
  return out;
}

std::string format_failures(const Report& report, size_t total) {
  constexpr size_t kShown = 5;
  const Failures& failures = report.failures;
  if (failures.count == 0) return "";
  std::string out = fmt::format("{} of {} requests failed:\n", failures.count, total);
  for (size_t i = 0; i < std::min(kShown, failures.by_error.size()); ++i) {
    out += fmt::format("  {} x {}\n", failures.by_error[i].second, failures.by_error[i].first);
  }
  if (failures.by_error.size() > kShown)
    out += fmt::format("  and {} other errors\n", failures.by_error.size() - kShown);
  return out;
}

std::string format_jsonl(const Report& r, const BenchConfig& config, const json::Value& server_info,
                         std::span<const RequestResult> results) {
  json::Object line;
  setup_keys(line, config);
  line["server_info"] = server_info;
  line["duration"] = r.duration_s;
  line["completed"] = r.completed;
  line["failed"] = r.failures.count;  // ours: SGLang's client has no such key
  line["total_input_tokens"] = r.total_input_tokens;
  line["total_input_text_tokens"] = r.total_input_tokens;
  line["total_input_vision_tokens"] = 0;
  line["total_output_tokens"] = r.total_output_tokens;
  line["total_output_tokens_retokenized"] = r.total_output_tokens_retokenized;
  line["request_throughput"] = r.request_throughput;
  line["input_throughput"] = r.input_throughput;
  line["output_throughput"] = r.output_throughput;
  line["total_throughput"] = r.total_throughput;
  spread_keys(line, "e2e_latency", r.e2e, false);
  spread_keys(line, "ttft", r.ttft, false);
  spread_keys(line, "tpot", r.tpot, false);
  spread_keys(line, "itl", r.itl, true);
  line["concurrency"] = r.concurrency;
  line["accept_length"] = r.accept_length ? json::Value(*r.accept_length) : json::Value(nullptr);
  line["max_output_tokens_per_s"] = r.max_output_tokens_per_s;
  line["max_concurrent_requests"] = r.max_concurrent_requests;
  if (config.output_details) detail_keys(line, results);
  return python_json(line) + "\n";
}

std::string default_output_file(const BenchConfig& config, double unix_seconds) {
  const std::time_t now = std::time_t(unix_seconds);
  std::tm local{};
  localtime_r(&now, &local);
  const std::string start =
      fmt::format("{}_{:02}{:02}_{}_", config.backend, local.tm_mon + 1, local.tm_mday, config.num_prompts);
  if (!config.dataset_name.starts_with("random")) return start + config.dataset_name + ".jsonl";
  return start + fmt::format("{}_{}.jsonl", config.random_input_len, config.random_output_len);
}

}  // namespace tandem::loadgen
