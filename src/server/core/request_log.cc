#include "server/core/request_log.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <span>

#include "api/json_text.h"
#include "text/tokenizer.h"

namespace tandem::server {
namespace {

constexpr size_t kShortLength = 2048;

std::string quoted(std::string_view text) {
  std::string out;
  api::append_json_string(out, text);
  return out;
}

std::string sampling_text(const api::SamplingParams& sampling) {
  std::string stop = "[";
  for (const std::string& text : sampling.stop) stop += (stop.size() > 1 ? "," : "") + quoted(text);
  return fmt::format(
      "{{'max_new_tokens': {}, 'min_new_tokens': {}, 'temperature': {}, 'top_p': {}, 'top_k': {}, 'min_p': {}, "
      "'frequency_penalty': {}, 'presence_penalty': {}, 'repetition_penalty': {}, 'stop': {}], 'stop_token_ids': [{}], "
      "'ignore_eos': {}}}",
      sampling.max_new_tokens, sampling.min_new_tokens, sampling.temperature, sampling.top_p, sampling.top_k,
      sampling.min_p, sampling.frequency_penalty, sampling.presence_penalty, sampling.repetition_penalty, stop,
      fmt::join(sampling.stop_token_ids, ","), sampling.ignore_eos);
}

}  // namespace

size_t logged_length(int32_t level) { return level >= 3 ? SIZE_MAX : level == 2 ? kShortLength : 0; }

std::string received_line(int32_t level, const api::EngineRequest& request, bool stream,
                          const text::Tokenizer* tokenizer) {
  std::string line = fmt::format("Receive: obj=GenerateReqInput(rid={}, stream={}, prompt_tokens={}",
                                 quoted(request.rid), stream, request.input_ids.size());
  if (request.bootstrap && request.bootstrap->room)
    line += fmt::format(", bootstrap_room={}", *request.bootstrap->room);
  if (request.priority) line += fmt::format(", priority={}", *request.priority);
  if (level >= 1) line += ", sampling_params=" + sampling_text(*request.sampling);
  if (level >= 2) {
    const std::span<const int32_t> all(request.input_ids);
    const std::span<const int32_t> shown = all.first(std::min(all.size(), logged_length(level)));
    const char* more = shown.size() < all.size() ? "..." : "";
    if (tokenizer != nullptr) line += ", text=" + quoted(tokenizer->decode(shown, false)) + more;
    line += fmt::format(", input_ids=[{}]{}", fmt::join(shown, ","), more);
  }
  return line + ")";
}

std::string finished_line(int32_t level, const Sequence& sequence, double e2e_latency) {
  std::string line = fmt::format("Finish: obj=GenerateReqInput(rid={}), out={{\"meta_info\":{{\"finish_reason\":",
                                 quoted(sequence.rid));
  api::append_finish_reason(line, sequence.finish());
  line += fmt::format(R"(,"prompt_tokens":{},"completion_tokens":{},"cached_tokens":{},"e2e_latency":{:.6f}}})",
                      sequence.prompt_tokens, sequence.completion_tokens(), sequence.cached_tokens, e2e_latency);
  if (level >= 2) {
    line += ",\"text\":" + quoted(sequence.logged_text());
    if (sequence.logged_text().size() >= logged_length(level)) line += "...";
  }
  return line + "}";
}

}  // namespace tandem::server
