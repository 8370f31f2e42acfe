#include "server/core/prepare.h"

#include <fmt/format.h>

#include <algorithm>

#include "api/native.h"
#include "text/stream_decoder.h"

namespace tandem::server {
namespace {

Result<api::Call> parse(const ServerConfig& config, api::Dialect dialect, const std::string& body) {
  switch (dialect) {
    case api::Dialect::kNative: return api::parse_generate(body);
    case api::Dialect::kCompletion: return api::parse_completion(body);
    case api::Dialect::kChat: return api::parse_chat(body, config.chat_defaults);
  }
  CHECK(false);
}

Status render(const PrepareParts& parts, api::Call& call) {
  if (!parts.tokenizer || !parts.chat_template) {
    return invalid_input("This server has no chat template; use /v1/completions or /generate.");
  }
  std::vector<text::ChatMessage> messages;
  for (api::ChatTurn& turn : call.messages) messages.push_back({std::move(turn.role), std::move(turn.content)});
  call.messages.clear();
  ASSIGN_OR_RETURN(call.items[0].text,
                   parts.chat_template->render(messages, !call.continue_final_message, call.continue_final_message));
  return Ok{};
}

Error too_long(std::string_view tokens, int32_t context_length) {
  return invalid_input(fmt::format("The input ({} tokens) is longer than the model's context length ({} tokens).",
                                   tokens, context_length));
}

Status tokenize(const PrepareParts& parts, const api::Call& call, api::PromptItem& item) {
  const ServerConfig& config = *parts.config;
  if (item.has_ids) {
    for (int32_t id : item.input_ids) {
      if (id >= 0 && id < config.vocab_size) continue;
      return invalid_input(fmt::format("input_ids must be in [0, {}), got {}.", config.vocab_size, id));
    }
    return Ok{};
  }
  if (!parts.tokenizer) {
    return invalid_input(
        "The engine initialized with skip_tokenizer_init=True cannot accept text prompts. Please provide input_ids or "
        "re-initialize the engine with skip_tokenizer_init=False.");
  }
  // A text that cannot fit whatever its tokens are is refused before minutes are spent on it.
  size_t at_least = parts.longest_token_bytes ? item.text.size() / parts.longest_token_bytes : 0;
  if (!config.allow_auto_truncate && at_least > static_cast<size_t>(config.context_length)) {
    return too_long(fmt::format("at least {}", at_least), config.context_length);
  }
  item.input_ids = parts.tokenizer->encode(item.text, call.dialect != api::Dialect::kChat);
  if (!call.echo) std::string().swap(item.text);
  if (item.input_ids.empty()) return invalid_input("The prompt has no tokens.");
  return Ok{};
}

Status fit_length(const ServerConfig& config, std::vector<int32_t>& ids, api::SharedSampling& sampling) {
  int32_t context = config.context_length;
  int32_t max_input = config.max_req_input_len;
  if (config.allow_auto_truncate && static_cast<int64_t>(ids.size()) > max_input) {
    ids.resize(static_cast<size_t>(std::max(max_input, 1)));
  }
  auto prompt = static_cast<int64_t>(ids.size());
  if (prompt >= context) return too_long(std::to_string(prompt), context);
  int64_t total = prompt + sampling->max_new_tokens;
  if (sampling->max_new_tokens_given && total >= context && !config.allow_auto_truncate) {
    return invalid_input(fmt::format(
        "Requested token count exceeds the model's maximum context length of {} tokens. You requested a total of {} "
        "tokens: {} tokens from the input messages and {} tokens for the completion. Please reduce the number of "
        "tokens "
        "in the input messages or the completion to fit within the limit.",
        context, total, prompt, sampling->max_new_tokens));
  }
  if (prompt > max_input) {
    return invalid_input(
        fmt::format("Input length ({} tokens) exceeds the maximum allowed length ({} tokens). Use a "
                    "shorter input or enable --allow-auto-truncate.",
                    prompt, max_input));
  }
  int64_t room = std::max<int64_t>(max_input + 5 - prompt - 1, 0);
  const auto most = static_cast<int32_t>(std::min<int64_t>(sampling->max_new_tokens, room));
  if (most == sampling->max_new_tokens && sampling->min_new_tokens <= most) return Ok{};
  api::SamplingParams& own = sampling.edit();
  own.max_new_tokens = most;
  own.min_new_tokens = std::min(own.min_new_tokens, most);
  return Ok{};
}

Status check_sampling(const PrepareParts& parts, const api::SamplingParams& sampling) {
  for (auto [id, bias] : sampling.logit_bias) {
    if (id < parts.config->vocab_size) continue;
    return invalid_input(
        fmt::format("logit_bias has the token id {}, but the vocabulary has {} tokens.", id, parts.config->vocab_size));
  }
  if (sampling.stop.empty() && sampling.stop_regex.empty()) return Ok{};
  if (!parts.tokenizer) return invalid_input("stop and stop_regex need a tokenizer (skip_tokenizer_init is on).");
  auto matcher = text::StopMatcher::create(sampling.stop, sampling.stop_regex, !sampling.no_stop_trim);
  if (!matcher) return matcher.error();
  return Ok{};
}

Status check_placement(const ServerConfig& config, const api::Call& call, const api::PromptItem& item) {
  // With prefill and decode apart it names a rank of the other server too, which has as many as it has.
  if (call.data_parallel_rank && (*call.data_parallel_rank < 0 || *call.data_parallel_rank >= config.num_ranks)) {
    return invalid_input(
        fmt::format("data_parallel_rank must be in [0, {}), got {}.", config.num_ranks, *call.data_parallel_rank));
  }
  if (config.role == engine::Role::kCombined) return Ok{};
  if (!item.bootstrap.room) {
    return invalid_input(fmt::format(
        "Invalid request: Disaggregated request received without boostrap room id. req.rid='{}'", item.rid));
  }
  if (config.role == engine::Role::kDecode && item.bootstrap.host.empty()) {
    return invalid_input("Invalid request: Disaggregated request received without bootstrap_host.");
  }
  return Ok{};
}

Status check_token_ids(const ServerConfig& config, const api::PromptItem& item) {
  for (int32_t id : item.token_ids_logprob) {
    if (id >= 0 && id < config.vocab_size) continue;
    return invalid_input(fmt::format("token_ids_logprob must be in [0, {}), got {}.", config.vocab_size, id));
  }
  return Ok{};
}

Status complete(const PrepareParts& parts, api::Call& call) {
  if (call.dialect == api::Dialect::kChat) RETURN_IF_ERROR(render(parts, call));
  for (const api::SharedSampling& sampling : call.sampling) RETURN_IF_ERROR(check_sampling(parts, *sampling));
  // Prompts differ in length, so their limits may, too.
  if (call.sampling.size() == 1) call.sampling.resize(call.items.size(), call.sampling[0]);
  int64_t tokens = 0;
  for (size_t i = 0; i < call.items.size(); ++i) {
    api::PromptItem& item = call.items[i];
    RETURN_IF_ERROR(check_placement(*parts.config, call, item));
    RETURN_IF_ERROR(check_token_ids(*parts.config, item));
    RETURN_IF_ERROR(tokenize(parts, call, item));
    RETURN_IF_ERROR(fit_length(*parts.config, item.input_ids, call.sampling[i]));
    tokens += static_cast<int64_t>(item.input_ids.size()) * call.n;
  }
  constexpr int64_t kMaxTokens = int64_t(1) << 28;
  if (tokens > kMaxTokens) {
    return invalid_input(
        fmt::format("{} prompt tokens in one request are more than the limit of {}.", tokens, kMaxTokens));
  }
  return Ok{};
}

}  // namespace

Prepared prepare(const PrepareParts& parts, api::Dialect dialect, std::string body) {
  Prepared prepared;
  Result<api::Call> call = parse(*parts.config, dialect, body);
  std::string().swap(body);  // large: gone before the next large thing is made
  if (!call) {
    prepared.error = call.error();
    return prepared;
  }
  prepared.call = std::move(*call);
  if (prepared.call.refusal) return prepared;
  Status done = complete(parts, prepared.call);
  if (!done) prepared.call.refusal = done.error();
  return prepared;
}

}  // namespace tandem::server
