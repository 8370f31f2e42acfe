// The OpenAI dialects as SGLang speaks them: bodies of /v1/completions and /v1/chat/completions, answers and stream
// chunks. Pure.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "api/call.h"
#include "api/native.h"

namespace tandem::api {

// What a chat request that leaves a parameter out gets (generation_config.json, or none with --sampling-defaults
// openai).
struct SamplingDefaults {
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int32_t> top_k;
};

// Errors and refusals as parse_generate().
Result<Call> parse_completion(std::string_view body);
// The prompt stays in call.messages: the server renders it with the chat template.
Result<Call> parse_chat(std::string_view body, const SamplingDefaults& defaults);

// Log-probabilities of one sequence, growing, in the form of its dialect.
class OpenAiLogprobs {
 public:
  explicit OpenAiLogprobs(Dialect dialect) : dialect_(dialect) {}
  void add(const TokenLogprob& logprob, const TokenText& token_text);
  // The `logprobs` value of everything since clear().
  void append_object(std::string& out) const;
  void clear();
  bool empty() const { return content_.empty() && tokens_.empty(); }

 private:
  Dialect dialect_;
  std::string content_;                          // chat: items
  std::string offsets_, values_, tokens_, top_;  // completions: four lists
};

// Everything that all parts of one answer share.
struct OpenAiHead {
  Dialect dialect = Dialect::kCompletion;
  std::string id, model;
  int64_t created = 0;  // unix seconds
};

struct OpenAiUsage {
  int64_t prompt_tokens = 0, completion_tokens = 0;
  std::optional<int64_t> cached_tokens;  // with --enable-cache-report
};

struct OpenAiChoice {
  int32_t index = 0;
  std::string_view text;                     // delta of a chunk; the whole of an answer
  const OpenAiLogprobs* logprobs = nullptr;  // null: not asked
  const FinishReason* finish = nullptr;      // null: goes on
};

// One element of `choices` of a whole answer.
void append_choice(std::string& out, Dialect dialect, const OpenAiChoice& choice);
// {"id":..,"choices":[choices],"usage":..}; choices: comma-separated elements.
std::string format_answer(const OpenAiHead& head, std::string_view choices, const OpenAiUsage& usage);

enum class ChunkKind : uint8_t { kRole, kDelta, kFinish };  // chat sends all three; completions only deltas
void append_chunk(std::string& out, const OpenAiHead& head, ChunkKind kind, const OpenAiChoice& choice,
                  const OpenAiUsage* usage);
// The extra chunk of include_usage: no choices.
void append_usage_chunk(std::string& out, const OpenAiHead& head, const OpenAiUsage& usage);

}  // namespace tandem::api
