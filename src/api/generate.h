// A generation request and its events as values: what every HTTP dialect is parsed into and formatted from, and what
// the engine takes. No sockets, no text processing. Values; any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/ids.h"

namespace tandem::api {

struct SamplingParams {
  int32_t max_new_tokens = 128;
  bool max_new_tokens_given = false;  // an explicit value that does not fit is a 400; the default is clipped
  int32_t min_new_tokens = 0;
  double temperature = 1.0;  // below 1e-6: greedy
  double top_p = 1.0, min_p = 0.0;
  int32_t top_k = -1;
  double frequency_penalty = 0, presence_penalty = 0, repetition_penalty = 1.0;
  std::vector<std::string> stop;  // matched on text by the server
  std::vector<int32_t> stop_token_ids;
  std::vector<std::string> stop_regex;  // matched on text by the server
  bool ignore_eos = false;              // also disables stop_token_ids, as in SGLang
  bool skip_special_tokens = true;
  bool no_stop_trim = false;
  int32_t n = 1;
  std::optional<int32_t> stream_interval;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::optional<uint64_t> seed;  // sampling_seed, or OpenAI's seed; absent: drawn by the server
};

// The same parameters for thousands of sequences of a call, held once. A value: edit() changes this one only.
class SharedSampling {
 public:
  SharedSampling() = default;
  SharedSampling(SamplingParams params) : params_(std::make_shared<SamplingParams>(std::move(params))) {}
  const SamplingParams& operator*() const { return params_ ? *params_ : kDefaults; }
  const SamplingParams* operator->() const { return &**this; }
  // Copied first unless nobody else has them. The reference is for this statement.
  SamplingParams& edit() {
    if (!params_ || params_.use_count() > 1) params_ = std::make_shared<SamplingParams>(**this);
    return *params_;
  }

 private:
  static const SamplingParams kDefaults;
  std::shared_ptr<SamplingParams> params_;  // null: the defaults
};
inline const SamplingParams SharedSampling::kDefaults = {};

// Where the KV of a disaggregated request comes from, as the router injects it.
struct BootstrapInfo {
  std::string host;              // "2.2.2.2": fake transfer (warm-up, health)
  std::optional<uint16_t> port;  // absent: the server's --disaggregation-bootstrap-port
  std::optional<uint64_t> room;  // unique id shared by prefill and decode
  bool is_fake() const { return host == "2.2.2.2"; }
};

// What the engine gets: one sequence. n and batches are expanded before.
struct EngineRequest {
  RequestId id;
  std::string rid;                     // the client's or a random one, for logs
  std::vector<int32_t> input_ids;      // not empty
  SharedSampling sampling;             // its n and seed are the call's
  std::optional<uint64_t> seed;        // of this sequence; absent: the engine's
  std::vector<int32_t> eos_token_ids;  // of the model
  bool return_logprob = false;
  int32_t logprob_start_len = -1;  // -1: output only
  int32_t top_logprobs_num = 0;
  std::vector<int32_t> token_ids_logprob;
  std::optional<BootstrapInfo> bootstrap;
  std::optional<int32_t> data_parallel_rank;  // asked for by the client; absent: the server chooses
  std::optional<int32_t> priority;            // only with --enable-priority-scheduling; absent: after all others
  bool is_health_check = false;               // no metrics; dropped when the rank is busy anyway
};

enum class FinishKind : uint8_t { kStopToken, kStopText, kLength, kAbort };

struct FinishReason {
  FinishKind kind = FinishKind::kLength;
  int32_t matched_token = -1;  // kStopToken
  std::string matched_text;    // kStopText
  int32_t length = 0;          // kLength: 0 on a prefill server's own answer
  std::string message;         // kAbort
  int32_t status_code = 0;     // kAbort: HTTP status of a non-streamed answer; 0: none
};

struct TokenLogprob {
  float logprob = 0;
  int32_t token = -1;
  bool present = true;                         // the first input token has no log-probability
  std::vector<std::pair<int32_t, float>> top;  // best first; empty unless asked
  std::vector<float> token_ids;                // in the order of token_ids_logprob
};

// How a request spent its time before its first token, in seconds; what does not apply is absent.
struct RequestTimes {
  std::optional<double> queue_time;              // ready to run, and waiting for a place in a batch
  std::optional<double> prefill_launch_delay;    // from its place in a prefill batch to the start of the forward
  std::optional<double> prefill_launch_latency;  // from the start of its first prefill forward to the end of its last
};

// One step's news of one request. Tokens are new ones only; the server accumulates.
struct EngineEvent {
  RequestId id;
  std::vector<int32_t> tokens;
  std::vector<TokenLogprob> logprobs;        // parallel to tokens when asked for
  std::vector<TokenLogprob> input_logprobs;  // once, with the first event
  int32_t prompt_tokens = 0, cached_tokens = 0, total_retractions = 0;
  std::optional<RequestTimes> times;   // once, with the first event after they are known
  std::optional<FinishReason> finish;  // the last event of the request
};

}  // namespace tandem::api
