#include <fmt/format.h>

#include <limits>

#include "api/openai.h"
#include "api/parse/bootstrap.h"
#include "api/parse/sampling.h"
#include "api/parse/values.h"

namespace tandem::api {
namespace {

constexpr UnsupportedField kUnsupported[] = {
    {"json_schema", Accepts::kNull},
    {"regex", Accepts::kNull},
    {"ebnf", Accepts::kNull},
    {"structural_tag", Accepts::kNull},
    {"suffix", Accepts::kNullOrEmpty},
    {"lora_path", Accepts::kNullOrEmpty},
    {"session_params", Accepts::kNullOrEmpty},
    {"custom_logit_processor", Accepts::kNullOrEmpty},
    {"custom_params", Accepts::kNullOrEmpty},
    {"return_hidden_states", Accepts::kFalse},
    {"cache_salt", Accepts::kNullOrEmpty},
    {"extra_key", Accepts::kNullOrEmpty},
};

constexpr UnsupportedField kUnsupportedChat[] = {
    {"tools", Accepts::kNullOrEmpty},
    {"functions", Accepts::kNullOrEmpty},
    {"reasoning_effort", Accepts::kNull},
    {"chat_template_kwargs", Accepts::kNullOrEmpty},
};

// The fields of a body that need others before they mean something.
struct Fields {
  OneOrMany<std::string> rid;
  BootstrapFields bootstrap;
  SamplingParams sampling;
  std::optional<int32_t> logprobs;  // completions: how many alternatives
  std::optional<int32_t> best_of;
  bool chat_logprobs = false;
  int32_t top_logprobs = 0;
  bool has_prompt = false;
};

// response_format {"type":"text"} is the default spelled out.
void take_response_format(Element value, Call& call) {
  std::string_view type;
  if (value.is_null()) return;
  if (value.is_object() && !value["type"].get_string().get(type) && type == "text") return;
  call.refuse("response_format is not supported by this server; only {\"type\": \"text\"} is accepted.");
}

void take_tool_choice(Element value, Call& call) {
  std::string_view choice;
  if (value.is_null()) return;
  if (!value.get_string().get(choice) && (choice == "none" || choice == "auto")) return;
  call.refuse("tool_choice is not supported by this server; only \"none\" and \"auto\" are accepted.");
}

Status read_stream_options(Element value, Call& call) {
  if (value.is_null()) return Ok{};
  if (!value.is_object()) return corrupt(fmt::format("stream_options: wanted an object, got {}", kind_name(value)));
  for (auto [key, option] : simdjson::dom::object(value)) {
    bool* flag = key == "include_usage"            ? &call.include_usage
                 : key == "continuous_usage_stats" ? &call.continuous_usage_stats
                                                   : nullptr;
    if (!flag || option.is_null()) continue;
    ASSIGN_OR_RETURN(*flag, to_bool(option, fmt::format("stream_options.{}", key)));
  }
  return Ok{};
}

// Fields that both dialects have. False: none of them.
Result<bool> read_shared(const std::string& key, Element value, Fields& fields, Call& call) {
  if (key == "stream_options") {
    RETURN_IF_ERROR(read_stream_options(value, call));
    return true;
  }
  if (key == "rid") {
    RETURN_IF_ERROR(read_one_or_many(value, key, fields.rid, to_string));
    return true;
  }
  if (key == "response_format") {
    take_response_format(value, call);
    return true;
  }
  if (key == "stream" || key == "model" || key == "priority") {
    if (value.is_null()) return true;
    if (key == "stream") {
      ASSIGN_OR_RETURN(call.stream, to_bool(value, key));
    } else if (key == "model") {
      ASSIGN_OR_RETURN(call.model, to_string(value, key));
    } else {
      ASSIGN_OR_RETURN(call.priority, to_int32(value, key));
    }
    return true;
  }
  ASSIGN_OR_RETURN(bool is_bootstrap, fields.bootstrap.read(key, value));
  if (is_bootstrap) return true;
  ASSIGN_OR_RETURN(bool is_sampling, parse_openai_sampling(key, value, fields.sampling));
  if (is_sampling) return true;
  return take_unsupported(kUnsupported, key, value, call);
}

Status read_text_prompt(Cursor& at, Call& call) {
  ASSIGN_OR_RETURN(std::string text, at.string("prompt"));
  call.items.emplace_back().text = std::move(text);
  return Ok{};
}

Status read_ids_prompt(Cursor& at, Call& call) {
  ASSIGN_OR_RETURN(std::vector<int32_t> ids, at.ids("prompt"));
  PromptItem& item = call.items.emplace_back();
  item.has_ids = true;
  item.input_ids = std::move(ids);
  if (item.input_ids.empty()) call.refuse("prompt cannot be empty.");
  return Ok{};
}

// A string, strings, ids, or lists of ids.
Status read_prompt(Cursor& at, Call& call) {
  call.items.clear();
  call.is_batch = false;
  char first = at.peek();
  if (first == '"') return read_text_prompt(at, call);
  if (first != '[') {
    ASSIGN_OR_RETURN(Element other, at.value("prompt"));
    return corrupt(fmt::format("prompt: wanted text or token ids, one or a list, got {}", kind_name(other)));
  }
  char inner = at.peek_inside();
  call.is_batch = inner == '"' || inner == '[';
  if (!call.is_batch) return read_ids_prompt(at, call);
  return at.array("prompt",
                  [&](size_t) { return inner == '"' ? read_text_prompt(at, call) : read_ids_prompt(at, call); });
}

Status read_completion_field(const std::string& key, Cursor& at, Fields& fields, Call& call) {
  if (key == "prompt") {
    fields.has_prompt = true;
    return read_prompt(at, call);
  }
  ASSIGN_OR_RETURN(Element value, at.value(key));
  if (key == "echo" && !value.is_null()) {
    ASSIGN_OR_RETURN(call.echo, to_bool(value, key));
  } else if (key == "logprobs" && !value.is_null()) {
    ASSIGN_OR_RETURN(fields.logprobs, to_int32(value, key));
  } else if (key == "best_of" && !value.is_null()) {
    ASSIGN_OR_RETURN(fields.best_of, to_int32(value, key));
  } else if (key != "max_completion_tokens") {  // a chat field
    ASSIGN_OR_RETURN(bool known, read_shared(key, value, fields, call));
    static_cast<void>(known);  // others are ignored, as SGLang does
  }
  return Ok{};
}

// content: text, or parts of which only text is understood.
Result<std::string> read_content(Element content, const std::string& path, Call& call) {
  if (content.is_null()) return std::string();
  if (!content.is_array()) return to_string(content, path);
  std::string out;
  bool first = true;
  for (Element part : simdjson::dom::array(content)) {
    std::string_view type, text;
    if (!part.is_object() || part["type"].get_string().get(type)) {
      return corrupt(fmt::format("{}: wanted parts with a \"type\", got {}", path, kind_name(part)));
    }
    if (type != "text") {
      call.refuse(fmt::format("{}: parts of type '{}' are not supported by this server.", path, shown(type)));
      continue;
    }
    if (part["text"].get_string().get(text)) return corrupt(fmt::format("{}: a text part without \"text\"", path));
    if (!first) out += ' ';
    first = false;
    out += text;
  }
  return out;
}

Status read_message(Cursor& at, size_t index, Call& call) {
  std::string path = fmt::format("messages[{}]", index);
  ChatTurn turn;
  bool has_role = false;
  RETURN_IF_ERROR(at.object(path, [&](const std::string& key) -> Status {
    std::string field = path + "." + key;
    if (key == "content" && at.peek() == '"') {
      ASSIGN_OR_RETURN(turn.content, at.string(field));
      return Ok{};
    }
    ASSIGN_OR_RETURN(Element value, at.value(field));
    if (key == "content") {
      ASSIGN_OR_RETURN(turn.content, read_content(value, field, call));
    } else if (key == "role") {
      ASSIGN_OR_RETURN(turn.role, to_string(value, field));
      has_role = true;
    } else if (key == "tool_calls" && !value.is_null() &&
               !(value.is_array() && simdjson::dom::array(value).size() == 0)) {
      call.refuse(field + " is not supported by this server.");
    }
    return Ok{};
  }));
  if (!has_role) return corrupt(path + ".role: is required");
  call.messages.push_back(std::move(turn));
  return Ok{};
}

Status read_chat_field(const std::string& key, Cursor& at, Fields& fields, Call& call) {
  if (key == "messages") {
    fields.has_prompt = true;
    call.messages.clear();
    return at.array("messages", [&](size_t index) { return read_message(at, index, call); });
  }
  ASSIGN_OR_RETURN(Element value, at.value(key));
  if (key == "logprobs" && !value.is_null()) {
    ASSIGN_OR_RETURN(fields.chat_logprobs, to_bool(value, key));
  } else if (key == "top_logprobs" && !value.is_null()) {
    ASSIGN_OR_RETURN(fields.top_logprobs, to_int32(value, key));
  } else if (key == "continue_final_message" && !value.is_null()) {
    ASSIGN_OR_RETURN(call.continue_final_message, to_bool(value, key));
  } else if (key == "tool_choice") {
    take_tool_choice(value, call);
  } else if (!take_unsupported(kUnsupportedChat, key, value, call)) {
    ASSIGN_OR_RETURN(bool known, read_shared(key, value, fields, call));
    static_cast<void>(known);  // others are ignored, as SGLang does
  }
  return Ok{};
}

void check_logprobs(int32_t count, std::string_view name, Call& call) {
  if (count < 0 || count > kMaxTopLogprobs) {
    call.refuse(fmt::format("{} must be in [0, {}], got {}.", name, kMaxTopLogprobs, count));
  }
}

// What both dialects do once all fields are there.
void finish(Fields& fields, Call& call) {
  if (fields.sampling.max_new_tokens_given && fields.sampling.max_new_tokens < 1) {
    call.refuse(fmt::format("max_tokens must be positive, got {}.", fields.sampling.max_new_tokens));
  }
  Status ranges = check_sampling(fields.sampling);
  if (!ranges) call.refuse(ranges.error().message);
  call.n = fields.sampling.n;
  call.sampling.emplace_back(std::move(fields.sampling));
  if (static_cast<int64_t>(call.items.size()) * call.n > kMaxSequencesPerCall) {
    call.refuse(fmt::format("{} prompts with n = {} are more than the limit of {} sequences in one request.",
                            call.items.size(), call.n, kMaxSequencesPerCall));
  }
  if (!fits(fields.rid, call.items.size())) {
    return call.refuse(fmt::format("The length of rid should be equal to the batch size ({}).", call.items.size()));
  }
  for (size_t i = 0; i < call.items.size(); ++i) {
    std::string& rid = call.items[i].rid;
    rid = fields.rid.at(i, "");
    if (call.is_batch && !fields.rid.is_list && !rid.empty()) rid += "_" + std::to_string(i);
  }
  fields.bootstrap.spread(call);
}

}  // namespace

Result<Call> parse_completion(std::string_view body) {
  Call call;
  call.dialect = Dialect::kCompletion;
  Fields fields;
  fields.sampling.max_new_tokens = 16;
  RETURN_IF_ERROR(parse_body(
      body, [&](const std::string& key, Cursor& at) { return read_completion_field(key, at, fields, call); }));
  if (!fields.has_prompt) return corrupt("prompt: is required");
  if (call.items.empty()) call.refuse("prompt cannot be empty.");
  if (fields.best_of && *fields.best_of != 1 && *fields.best_of != fields.sampling.n) {
    call.refuse("best_of is not supported by this server; only 1 or the value of n is accepted.");
  }
  for (PromptItem& item : call.items) {
    if (!item.has_ids && item.text.empty()) call.refuse("prompt cannot be empty.");
    if (!fields.logprobs) continue;
    check_logprobs(*fields.logprobs, "logprobs", call);
    item.return_logprob = true;
    item.top_logprobs_num = *fields.logprobs;
    if (call.echo) item.logprob_start_len = 0;
  }
  finish(fields, call);
  return call;
}

Result<Call> parse_chat(std::string_view body, const SamplingDefaults& defaults) {
  Call call;
  call.dialect = Dialect::kChat;
  Fields fields;
  fields.sampling.max_new_tokens = std::numeric_limits<int32_t>::max();  // to the context limit
  fields.sampling.temperature = defaults.temperature.value_or(1.0);
  fields.sampling.top_p = defaults.top_p.value_or(1.0);
  fields.sampling.min_p = defaults.min_p.value_or(0.0);
  fields.sampling.top_k = defaults.top_k.value_or(-1);
  fields.sampling.repetition_penalty = defaults.repetition_penalty.value_or(1.0);
  RETURN_IF_ERROR(
      parse_body(body, [&](const std::string& key, Cursor& at) { return read_chat_field(key, at, fields, call); }));
  if (!fields.has_prompt) return corrupt("messages: is required");
  if (call.messages.empty()) call.refuse("Messages cannot be empty.");
  check_logprobs(fields.top_logprobs, "top_logprobs", call);
  if (fields.top_logprobs > 0 && !fields.chat_logprobs) call.refuse("top_logprobs needs logprobs to be true.");
  PromptItem& item = call.items.emplace_back();
  item.return_logprob = fields.chat_logprobs;
  item.top_logprobs_num = fields.chat_logprobs ? fields.top_logprobs : 0;
  finish(fields, call);
  return call;
}

}  // namespace tandem::api
