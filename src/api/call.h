// Call: what one generation POST asks for, in any dialect, before tokens exist. Parsed from a body by api/native.h and
// api/openai.h; the server turns it into EngineRequests. Values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "api/generate.h"
#include "base/result.h"

namespace tandem::api {

enum class Dialect : uint8_t { kNative, kCompletion, kChat };

// One prompt. n sequences come from each.
struct PromptItem {
  bool has_ids = false;
  std::string text;                // unless has_ids
  std::vector<int32_t> input_ids;  // if has_ids
  std::string rid;                 // empty: the server draws one
  bool return_logprob = false;
  int32_t logprob_start_len = -1;
  int32_t top_logprobs_num = 0;
  std::vector<int32_t> token_ids_logprob;
  BootstrapInfo bootstrap;
};

struct ChatTurn {
  std::string role, content;
};

struct Call {
  Dialect dialect = Dialect::kNative;
  bool stream = false;
  bool is_batch = false;  // the prompt was a list
  int32_t n = 1;
  std::vector<PromptItem> items;         // chat: one, its text made from messages
  std::vector<SharedSampling> sampling;  // one for all items, or one for each
  std::optional<int32_t> priority;
  std::optional<int32_t> data_parallel_rank;

  // Native.
  bool return_text_in_logprobs = false;
  bool log_metrics = true;

  // OpenAI.
  std::string model;  // echoed in the answer; not checked
  bool echo = false;
  bool include_usage = false, continuous_usage_stats = false;
  std::vector<ChatTurn> messages;       // chat
  bool continue_final_message = false;  // chat

  // Set when the body was understood but cannot be served: 400, or an event where `stream` is on.
  std::optional<Error> refusal;

  const SamplingParams& sampling_of(size_t item) const { return *sampling[sampling.size() == 1 ? 0 : item]; }
  // The first refusal counts.
  void refuse(std::string message) {
    if (!refusal) refusal = invalid_input(std::move(message));
  }
};

// Bounds of one POST; beyond them it is refused.
inline constexpr int64_t kMaxSequencesPerCall = 100000;
inline constexpr int32_t kMaxTopLogprobs = 1024;

}  // namespace tandem::api
