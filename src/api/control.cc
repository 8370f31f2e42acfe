#include "api/control.h"

#include <fmt/format.h>

#include <cmath>

#include "api/json_text.h"
#include "api/parse/cursor.h"
#include "api/parse/values.h"
#include "base/json.h"

namespace tandem::api {
namespace {

void append_ids(std::string& out, std::span<const int32_t> ids) {
  out += '[';
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i) out += ',';
    append_json_int(out, ids[i]);
  }
  out += ']';
}

Status read_prompts(Cursor& at, TokenizeCall& call) {
  auto one = [&](size_t) -> Status {
    ASSIGN_OR_RETURN(std::string text, at.string("prompt"));
    call.prompts.push_back(std::move(text));
    return Ok{};
  };
  call.prompts.clear();
  call.is_batch = at.peek() == '[';
  return call.is_batch ? at.array("prompt", one) : one(0);
}

Status read_token_lists(Cursor& at, DetokenizeCall& call) {
  auto one = [&](size_t) -> Status {
    ASSIGN_OR_RETURN(std::vector<int32_t> ids, at.ids("tokens"));
    call.tokens.push_back(std::move(ids));
    return Ok{};
  };
  call.tokens.clear();
  call.is_batch = at.peek() == '[' && at.peek_inside() == '[';
  return call.is_batch ? at.array("tokens", one) : one(0);
}

constexpr double kLongestWaitSeconds = 86400;  // a day

Result<double> to_seconds(Element value, const std::string& key) {
  ASSIGN_OR_RETURN(const double seconds, to_double(value, key));
  if (seconds >= 0 && seconds <= kLongestWaitSeconds) return seconds;
  return corrupt(fmt::format("{}: {} is not in [0, {}] seconds", key, seconds, kLongestWaitSeconds));
}

}  // namespace

Result<AbortCall> parse_abort(std::string_view body) {
  AbortCall call;
  RETURN_IF_ERROR(parse_body(body, [&](const std::string& key, Cursor& at) -> Status {
    ASSIGN_OR_RETURN(Element value, at.value(key));
    if (value.is_null()) return Ok{};
    if (key == "rid") {
      ASSIGN_OR_RETURN(call.rid, to_string(value, key));
    } else if (key == "abort_all") {
      ASSIGN_OR_RETURN(call.abort_all, to_bool(value, key));
    }
    return Ok{};
  }));
  return call;
}

Result<SlowDownCall> parse_slow_down(std::string_view body) {
  SlowDownCall call;
  bool given = false;
  RETURN_IF_ERROR(parse_body(body, [&](const std::string& key, Cursor& at) -> Status {
    ASSIGN_OR_RETURN(Element value, at.value(key));
    if (key != "forward_sleep_time") return Ok{};
    given = true;
    double seconds = 0;
    if (!value.is_null()) {
      ASSIGN_OR_RETURN(seconds, to_seconds(value, key));
    }
    call.sleep_ms = uint32_t(std::ceil(seconds * 1e3));
    return Ok{};
  }));
  if (!given) return corrupt("forward_sleep_time: is required, seconds or null");
  return call;
}

Result<HoldCall> parse_hold(std::string_view body) {
  HoldCall call;
  bool given = false;
  RETURN_IF_ERROR(parse_body(body, [&](const std::string& key, Cursor& at) -> Status {
    ASSIGN_OR_RETURN(Element value, at.value(key));
    if (key == "running_requests") {
      given = true;
      call.running_requests = 0;
      if (value.is_null()) return Ok{};
      ASSIGN_OR_RETURN(const int64_t number, to_int(value, key, 1, INT32_MAX));
      call.running_requests = int32_t(number);
    } else if (key == "timeout_s" && !value.is_null()) {
      ASSIGN_OR_RETURN(call.timeout_s, to_seconds(value, key));
      if (call.timeout_s <= 0) return corrupt("timeout_s: should be more than 0 seconds");
    }
    return Ok{};
  }));
  if (!given) return corrupt("running_requests: is required, a number of requests per rank or null");
  return call;
}

Result<RebalanceCall> parse_rebalance(std::string_view body) {
  RebalanceCall call;
  if (body.empty()) return call;
  const Result<json::Document> document = json::Document::parse(body, "body");
  if (!document) return corrupt(document.error().message);
  simdjson::dom::object fields;
  if (document->root().get(fields) != simdjson::SUCCESS) return corrupt("wanted an object");
  for (const auto& [key, value] : fields) {
    if (value.is_null()) continue;
    if (key == "placement") {
      call.placement = simdjson::minify(value);
    } else if (key != "algorithm") {
      return corrupt(fmt::format("unknown field '{}': wanted algorithm or placement", key));
    } else if (std::string_view name; value.get(name) == simdjson::SUCCESS) {
      call.algorithm = name;
    } else {
      return corrupt("algorithm: wanted a text");
    }
  }
  if (!call.algorithm.empty() && !call.placement.empty()) return corrupt("wanted algorithm or placement, got both");
  return call;
}

Result<TokenizeCall> parse_tokenize(std::string_view body) {
  TokenizeCall call;
  bool has_prompt = false;
  RETURN_IF_ERROR(parse_body(body, [&](const std::string& key, Cursor& at) -> Status {
    if (key == "prompt") {
      has_prompt = true;
      return read_prompts(at, call);
    }
    ASSIGN_OR_RETURN(Element value, at.value(key));
    if (key == "add_special_tokens") {
      ASSIGN_OR_RETURN(call.add_special_tokens, to_bool(value, key));
    }
    return Ok{};
  }));
  if (!has_prompt) return corrupt("prompt: is required");
  return call;
}

std::string format_tokenize(const TokenizeCall& call, std::span<const std::vector<int32_t>> tokens,
                            int32_t max_model_len) {
  std::string lists, counts;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i) lists += ',', counts += ',';
    append_ids(lists, tokens[i]);
    append_json_int(counts, static_cast<int64_t>(tokens[i].size()));
  }
  if (call.is_batch) {
    lists = "[" + lists + "]";
    counts = "[" + counts + "]";
  }
  return fmt::format(R"({{"tokens":{},"count":{},"max_model_len":{}}})", lists, counts, max_model_len);
}

Result<DetokenizeCall> parse_detokenize(std::string_view body) {
  DetokenizeCall call;
  bool has_tokens = false;
  RETURN_IF_ERROR(parse_body(body, [&](const std::string& key, Cursor& at) -> Status {
    if (key == "tokens") {
      has_tokens = true;
      return read_token_lists(at, call);
    }
    ASSIGN_OR_RETURN(Element value, at.value(key));
    if (key == "skip_special_tokens") {
      ASSIGN_OR_RETURN(call.skip_special_tokens, to_bool(value, key));
    }
    return Ok{};
  }));
  if (!has_tokens) return corrupt("tokens: is required");
  return call;
}

std::string format_detokenize(const DetokenizeCall& call, std::span<const std::string> texts) {
  std::string list;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (i) list += ',';
    append_json_string(list, texts[i]);
  }
  return call.is_batch ? R"({"text":[)" + list + "]}" : R"({"text":)" + list + "}";
}

}  // namespace tandem::api
