#include "api/json_text.h"
#include "api/openai.h"

namespace tandem::api {
namespace {

// ,"key": or "key": with the comma left to the caller
void append_text_or_null(std::string& out, std::string_view text) {
  if (text.empty()) {
    out += "null";
  } else {
    append_json_string(out, text);
  }
}

// {"token":..,"bytes":[..],"logprob":..
void append_chat_token(std::string& out, const std::string& token, float logprob) {
  out += R"({"token":)";
  append_json_string(out, token);
  out += R"(,"bytes":[)";
  for (size_t i = 0; i < token.size(); ++i) {
    if (i) out += ',';
    append_json_int(out, static_cast<unsigned char>(token[i]));
  }
  out += R"(],"logprob":)";
  append_json_number(out, logprob);
}

std::string text_of(const TokenText& token_text, int32_t id) {
  return token_text ? token_text(id) : std::to_string(id);
}

void append_usage(std::string& out, const OpenAiUsage& usage) {
  out += R"({"prompt_tokens":)";
  append_json_int(out, usage.prompt_tokens);
  out += R"(,"total_tokens":)";
  append_json_int(out, usage.prompt_tokens + usage.completion_tokens);
  out += R"(,"completion_tokens":)";
  append_json_int(out, usage.completion_tokens);
  out += R"(,"prompt_tokens_details":)";
  if (usage.cached_tokens && *usage.cached_tokens > 0) {
    out += R"({"cached_tokens":)";
    append_json_int(out, *usage.cached_tokens);
    out += '}';
  } else {
    out += "null";
  }
  out += R"(,"reasoning_tokens":0})";
}

// "logprobs":..,"finish_reason":..,"matched_stop":..}
void append_choice_end(std::string& out, const OpenAiChoice& choice) {
  out += R"("logprobs":)";
  if (choice.logprobs) {
    choice.logprobs->append_object(out);
  } else {
    out += "null";
  }
  const FinishReason* finish = choice.finish;
  if (!finish) {
    out += R"(,"finish_reason":null,"matched_stop":null})";
    return;
  }
  out += R"(,"finish_reason":)";
  switch (finish->kind) {
    case FinishKind::kLength: out += R"("length","matched_stop":null)"; break;
    case FinishKind::kAbort: out += R"("abort","matched_stop":null)"; break;
    case FinishKind::kStopToken:
      out += R"("stop","matched_stop":)";
      append_json_int(out, finish->matched_token);
      break;
    case FinishKind::kStopText:
      out += R"("stop","matched_stop":)";
      append_json_string(out, finish->matched_text);
      break;
  }
  out += '}';
}

void append_head(std::string& out, const OpenAiHead& head, std::string_view object) {
  out += R"({"id":)";
  append_json_string(out, head.id);
  out += R"(,"object":")";
  out += object;
  out += R"(","created":)";
  append_json_int(out, head.created);
  out += R"(,"model":)";
  append_json_string(out, head.model);
}

std::string_view chunk_object(Dialect dialect) {
  return dialect == Dialect::kChat ? "chat.completion.chunk" : "text_completion";
}

}  // namespace

void OpenAiLogprobs::add(const TokenLogprob& logprob, const TokenText& token_text) {
  std::string token = text_of(token_text, logprob.token);
  if (dialect_ == Dialect::kChat) {
    append_json_comma(content_);
    append_chat_token(content_, token, logprob.logprob);
    content_ += R"(,"top_logprobs":[)";
    for (size_t i = 0; i < logprob.top.size(); ++i) {
      if (i) content_ += ',';
      append_chat_token(content_, text_of(token_text, logprob.top[i].first), logprob.top[i].second);
      content_ += '}';
    }
    content_ += "]}";
    return;
  }
  append_json_comma(offsets_);
  offsets_ += "-1";  // SGLang does not give offsets
  append_json_comma(values_);
  if (logprob.present) {
    append_json_number(values_, logprob.logprob);
  } else {
    values_ += "null";
  }
  append_json_comma(tokens_);
  append_json_string(tokens_, token);
  append_json_comma(top_);
  if (logprob.top.empty()) {
    top_ += "null";
    return;
  }
  top_ += '{';
  for (size_t i = 0; i < logprob.top.size(); ++i) {
    if (i) top_ += ',';
    append_json_string(top_, text_of(token_text, logprob.top[i].first));
    top_ += ':';
    append_json_number(top_, logprob.top[i].second);
  }
  top_ += '}';
}

void OpenAiLogprobs::append_object(std::string& out) const {
  if (dialect_ == Dialect::kChat) {
    out += R"({"content":[)";
    out += content_;
    out += "]}";
    return;
  }
  out += R"({"text_offset":[)";
  out += offsets_;
  out += R"(],"token_logprobs":[)";
  out += values_;
  out += R"(],"tokens":[)";
  out += tokens_;
  out += R"(],"top_logprobs":[)";
  out += top_;
  out += "]}";
}

void OpenAiLogprobs::clear() {
  for (std::string* list : {&content_, &offsets_, &values_, &tokens_, &top_}) list->clear();
}

void append_choice(std::string& out, Dialect dialect, const OpenAiChoice& choice) {
  out += R"({"index":)";
  append_json_int(out, choice.index);
  if (dialect == Dialect::kChat) {
    out += R"(,"message":{"role":"assistant","content":)";
    append_json_string(out, choice.text);
    out += R"(,"reasoning_content":null,"tool_calls":null},)";
  } else {
    out += R"(,"text":)";
    append_json_string(out, choice.text);
    out += ',';
  }
  append_choice_end(out, choice);
}

std::string format_answer(const OpenAiHead& head, std::string_view choices, const OpenAiUsage& usage) {
  std::string out;
  out.reserve(choices.size() + 512);
  append_head(out, head, head.dialect == Dialect::kChat ? "chat.completion" : "text_completion");
  out += R"(,"choices":[)";
  out += choices;
  out += R"(],"usage":)";
  append_usage(out, usage);
  out += R"(,"metadata":{"weight_version":"default"}})";
  return out;
}

void append_chunk(std::string& out, const OpenAiHead& head, ChunkKind kind, const OpenAiChoice& choice,
                  const OpenAiUsage* usage) {
  append_head(out, head, chunk_object(head.dialect));
  out += R"(,"choices":[{"index":)";
  append_json_int(out, choice.index);
  if (head.dialect != Dialect::kChat) {
    out += R"(,"text":)";
    append_json_string(out, choice.text);
    out += ',';
  } else if (kind == ChunkKind::kRole) {
    out += R"(,"delta":{"role":"assistant","content":"","reasoning_content":null,"tool_calls":null},)";
  } else {
    out += R"(,"delta":{"role":null,"content":)";
    append_text_or_null(out, choice.text);
    out += R"(,"reasoning_content":null,"tool_calls":null},)";
  }
  append_choice_end(out, choice);
  out += R"(],"usage":)";
  if (usage) {
    append_usage(out, *usage);
  } else {
    out += "null";
  }
  out += '}';
}

void append_usage_chunk(std::string& out, const OpenAiHead& head, const OpenAiUsage& usage) {
  append_head(out, head, chunk_object(head.dialect));
  out += R"(,"choices":[],"usage":)";
  append_usage(out, usage);
  out += '}';
}

}  // namespace tandem::api
