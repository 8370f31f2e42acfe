// BenchConfig: what one bench_serving run does. Values; the flags behind it live in app.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace tandem::loadgen {

// The wire forms that the backends speak.
enum class Dialect { kNative, kCompletions, kChat };

struct Backend {
  const char* name;  // --backend
  Dialect dialect;
  const char* path;  // where requests are posted
  uint16_t default_port;
};
// Null: unknown.
const Backend* find_backend(std::string_view name);

struct BenchConfig {
  std::string backend = "sglang";  // sglang, sglang-native, sglang-oai, sglang-oai-chat, vllm, vllm-chat
  std::string base_url;            // "http://host:port"; empty: host and port
  std::string host = "0.0.0.0";
  std::optional<int32_t> port;  // absent: 30000 for sglang*, 8000 for vllm*
  std::string authorization;    // value of the Authorization header; empty: none

  std::string dataset_name = "sharegpt";  // sharegpt, random, random-ids, generated-shared-prefix
  std::string dataset_path;               // a ShareGPT file: JSON list, or one object a line
  std::string model;                      // empty: data[0].id of /v1/models
  std::string served_model_name;          // what requests carry as "model"; empty: model
  std::string tokenizer;                  // directory or tokenizer.json; empty: model, else what the server names
  int32_t num_prompts = 1000;             // generated-shared-prefix sends groups x prompts per group instead
  std::optional<int32_t> sharegpt_output_len;
  std::optional<int32_t> sharegpt_context_len;
  int32_t random_input_len = 1024;
  int32_t random_output_len = 1024;
  double random_range_ratio = 0.0;  // lengths are uniform in [len * ratio, len]
  int32_t gsp_num_groups = 64;
  int32_t gsp_prompts_per_group = 16;
  int32_t gsp_system_prompt_len = 2048;
  int32_t gsp_question_len = 128;
  int32_t gsp_output_len = 256;

  double request_rate = std::numeric_limits<double>::infinity();  // requests/s, Poisson; infinite: all at once
  std::optional<int32_t> max_concurrency;
  int32_t warmup_requests = 1;
  bool flush_cache = false;
  uint64_t seed = 1;
  Duration request_timeout = std::chrono::hours(6);  // of one request, from its dispatch

  bool disable_stream = false;
  bool disable_ignore_eos = false;
  bool return_logprob = false;       // native dialect only
  bool tokenize_prompt = false;      // send ids; native dialect with random or random-ids
  bool apply_chat_template = false;  // sharegpt only
  std::string prompt_suffix;         // sharegpt only
  std::string extra_request_body;    // JSON object; its keys replace the request's

  std::string output_file;   // JSONL, appended to; empty: the default name, see default_output_file()
  bool save_results = true;  // false: no file at all (tandem up --bench)
  bool output_details = false;
  std::string tag;
  bool disable_tqdm = false;
  bool print_requests = false;  // chat backends only
  // SGLang's client counts every HTTP 200 as a success with the requested length. We count a request whose stream
  // carries an error or an abort, or ends short, as failed; this restores SGLang's counting, to compare with its
  // figures.
  bool count_failures_as_success = false;

  // Parsed and refused: not in this version.
  bool plot_throughput = false;
  bool profile = false;
  bool profile_by_stage = false;
  std::optional<int32_t> profile_num_steps;
  std::vector<std::string> profile_activities, profile_stages, profile_prefill_url, profile_decode_url;
  bool pd_separated = false;  // says which servers to profile; nothing without profile

  // One line that names the flag at fault.
  Status validate() const;
  // "http://host:port", from base_url or host and port. Valid after validate().
  std::string origin() const;
};

}  // namespace tandem::loadgen
