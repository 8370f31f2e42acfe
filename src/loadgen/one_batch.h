// bench_one_batch_server: batches of equal prompts, each sent as one streaming request. SGLang's client in flow,
// figures and output.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/json.h"
#include "base/result.h"
#include "loadgen/bench_serving.h"

namespace tandem::loadgen {

struct OneBatchConfig {
  std::string base_url;       // required: servers are started by `tandem up`, not by the client
  std::string authorization;  // value of the Authorization header; empty: none
  std::string tokenizer;      // empty: where the server's info says
  std::string run_name = "default";
  std::vector<int32_t> batch_size{1};  // every combination of the three lists is run
  std::vector<int32_t> input_len{1024};
  std::vector<int32_t> output_len{16};
  double temperature = 0;
  bool return_logprob = false;
  int32_t client_stream_interval = 1;  // tokens per event
  bool skip_warmup = false;
  bool show_report = false;                      // a Markdown table at the end
  std::string dataset_path;                      // content of the prompts; empty: random words
  std::string result_filename = "result.jsonl";  // appended to; empty: not saved
  bool profile = false;                          // every case once more after the measured one, profiled
  int32_t profile_steps = 5;
  bool profile_by_stage = false;
  std::string profile_prefix;      // before "bs-<batch>-il-<input>"
  std::string profile_output_dir;  // on the servers' machines; empty: their default
  uint64_t seed = 42;
  double dollars_per_hour = 0;  // of all the server's accelerators, for the table's cost columns; 0: left out
  Duration request_timeout = std::chrono::hours(6);  // of one batch

  Status validate() const;  // one line that names the flag at fault
};

struct OneBatchResult {
  std::string run_name;
  int32_t batch_size = 0, input_len = 0, output_len = 0;
  double latency_s = 0;             // to the last event
  double last_ttft_s = 0;           // until every sequence had its first token
  double input_throughput = 0;      // tokens/s: batch * input_len / last_ttft
  double output_throughput = 0;     // tokens/s: batch * output_len / (latency - last_ttft)
  double overall_throughput = 0;    // tokens/s: both over the latency
  double last_gen_throughput = -1;  // the server's own figure; -1: not reported
  double acc_length = -1;           // speculative acceptance; -1: not reported
};

// Tokens of KV that the server says it holds: the sum over the internal states (one per DP rank) of the server, or of
// all decode servers behind a router. SGLang's client looks at one rank only and so skips cases that would fit. Absent:
// not said.
std::optional<double> token_capacity(simdjson::dom::element server_info);

// The lines printed after a case.
std::string format_one_batch(const OneBatchResult& result);
// One line of JSON with a line end.
std::string one_batch_jsonl(const OneBatchResult& result);
// --show-report's table.
std::string one_batch_table(std::span<const OneBatchResult> results, double dollars_per_hour);

// Blocks as run_bench_serving does; parts.progress is not used. Cases over the capacity are skipped with a line.
// Errors: as there, and a batch that fails or ends short.
Result<std::vector<OneBatchResult>> run_one_batch(const OneBatchConfig& config, const BenchParts& parts);

}  // namespace tandem::loadgen
