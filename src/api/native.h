// SGLang's native dialect: bodies of /generate, and its answers. Pure but for the text of token ids, which the caller
// gives.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "api/call.h"

namespace tandem::api {

// kCorrupt: broken JSON or a wrong type (validation form of error). What was understood but cannot be served is in
// call.refusal.
Result<Call> parse_generate(std::string_view body);

// Text of one token id; empty function: no tokenizer.
using TokenText = std::function<std::string(int32_t)>;

struct NativeOptions {
  bool with_text = true;      // off with --skip-tokenizer-init
  bool disjoint_ids = false;  // --stream-output: each event has only its new ids
  bool return_logprob = false;
  bool with_top = false;  // top_logprobs_num > 0
  std::vector<int32_t> token_ids_logprob;
  TokenText token_text;  // given: fills the text slot of log-probabilities
};

// Counts and times of one sequence, for meta_info. Times in unix seconds, differences in seconds; absent: key left out.
struct NativeMeta {
  std::string_view rid;
  int32_t index = -1;  // -1: no "index" key
  int32_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0, total_retractions = 0;
  const FinishReason* finish = nullptr;
  std::optional<double> e2e_latency, response_sent_to_client_ts;
  RequestTimes times;
  std::optional<double> request_received_ts, request_sent_to_scheduler_ts, prefill_finished_ts, decode_finished_ts,
      inference_time, decode_throughput;
};

// The growing answer of one sequence. Everything but the counts is kept as JSON text already escaped, so that an event,
// which repeats all text so far, costs one copy.
class NativeSequence {
 public:
  explicit NativeSequence(NativeOptions options)
      : NativeSequence(std::make_shared<const NativeOptions>(std::move(options))) {}
  // Shared: thousands of sequences of one call have the same.
  explicit NativeSequence(std::shared_ptr<const NativeOptions> options) : options_(std::move(options)) {}

  void add_token(int32_t id, const TokenLogprob* logprob);
  void add_text(std::string_view text);  // whole characters
  void set_input_logprobs(std::span<const TokenLogprob> logprobs);
  // {"text":..,"output_ids":[..],"meta_info":{..}}
  void append_object(std::string& out, const NativeMeta& meta);

 private:
  struct LogprobLists {
    std::string token, top, ids;  // comma-separated JSON items
  };
  struct Logprobs {
    LogprobLists input, output;
  };
  void add_logprob(LogprobLists& lists, const TokenLogprob& logprob);
  Logprobs& lists();
  void append_logprobs(std::string& out);

  std::shared_ptr<const NativeOptions> options_;
  std::string text_;                    // escaped, without quotes
  std::string ids_;                     // "1,2,3"
  std::unique_ptr<Logprobs> logprobs_;  // null: none yet
};

// {"type":"length","length":5}, or null.
void append_finish_reason(std::string& out, const FinishReason* finish);

}  // namespace tandem::api
