// Report: the figures of a run, each by its definition, and how they are printed and saved. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "loadgen/bench_config.h"
#include "loadgen/measure.h"
#include "text/tokenizer.h"

namespace tandem::loadgen {

// Of one latency, in milliseconds. Percentiles interpolate linearly between the two nearest values; std is the
// population's. All 0 for no values.
struct Spread {
  double mean = 0, median = 0, std = 0, p95 = 0, p99 = 0, max = 0;
};
Spread spread_ms(std::vector<double> values_s);
// percent in [0, 100]; sorted ascending, not empty.
double percentile(std::span<const double> sorted, double percent);

struct Failures {
  int64_t count = 0;
  std::vector<std::pair<std::string, int64_t>> by_error;  // most frequent first
};

struct Report {
  int64_t completed = 0;
  double duration_s = 0;  // first dispatch until all have finished and the server's state was asked
  int64_t total_input_tokens = 0;
  int64_t total_output_tokens = 0;
  int64_t total_output_tokens_retokenized = 0;
  // Per second of duration_s.
  double request_throughput = 0, input_throughput = 0, output_throughput = 0, total_throughput = 0;
  double max_output_tokens_per_s = 0;   // of the fullest second
  int64_t max_concurrent_requests = 0;  // requests alive in the fullest second
  double concurrency = 0;               // sum of latencies / duration_s
  std::optional<double> accept_length;  // where the server reports it
  Spread e2e, ttft, tpot, itl;
  Failures failures;
};

// Over successful results only. tokenizer: re-encodes the texts. accept_length above 0 and an sglang OpenAI backend:
// each chunk's latency is shared by the tokens of its re-encoded text.
Report make_report(std::span<const RequestResult> results, double duration_s, std::optional<double> accept_length,
                   const Backend& backend, const text::Tokenizer& tokenizer);

// The block "Serving Benchmark Result", leading blank line and trailing line end included.
std::string format_block(const Report& report, const BenchConfig& config);
// The first few kinds of failure with their counts; empty when nothing failed.
std::string format_failures(const Report& report, size_t total);
// One line of JSON with a line end. server_info: null when the server gave none. results: for output_details.
std::string format_jsonl(const Report& report, const BenchConfig& config, const json::Value& server_info,
                         std::span<const RequestResult> results);
// "<backend>_<MMDD>_<num_prompts>_<in>_<out>.jsonl" for the random data sets, "..._<dataset>.jsonl" for the others.
std::string default_output_file(const BenchConfig& config, double unix_seconds);

// A number as Python's print and json write it: "16.0", "inf".
std::string python_float(double value);
// JSON as Python's json.dumps writes it: ", " and ": ", floats by python_float, infinities as Infinity.
std::string python_json(const json::Value& value);

}  // namespace tandem::loadgen
