#include "loadgen/measure.h"

#include <fmt/format.h>

#include <algorithm>

namespace tandem::loadgen {
namespace {

constexpr size_t kMaxErrorBody = 4096;
constexpr size_t kMaxBody = size_t(256) << 20;  // of an answer that does not stream
constexpr size_t kMaxErrorText = 300;

std::string one_line(std::string_view text) {
  std::string line(text.substr(0, kMaxErrorText));
  std::replace_if(
      line.begin(), line.end(), [](char c) { return uint8_t(c) < ' '; }, ' ');
  if (text.size() > kMaxErrorText) line += "...";
  return line;
}

bool text_of(simdjson::dom::element element, std::string_view& out) { return !element.get(out); }

// The message of an error value: a string, or an object with `message`.
std::string error_message(simdjson::dom::element error) {
  std::string_view text;
  if (text_of(error, text)) return one_line(text);
  simdjson::dom::element inner;
  if (!error["message"].get(inner) && text_of(inner, text)) return one_line(text);
  return one_line(simdjson::minify(error));
}

}  // namespace

std::string describe_error_body(std::string_view body) {
  simdjson::dom::parser parser;
  simdjson::dom::element root;
  if (!parser.parse(body.data(), body.size(), true).get(root) && root.is_object()) {
    for (const char* key : {"error", "message", "detail"}) {
      simdjson::dom::element value;
      if (!root[key].get(value) && !value.is_null()) return error_message(value);
    }
  }
  return body.empty() ? "empty body" : one_line(body);
}

ResponseMeter::ResponseMeter(Expectation expectation, TimePoint start) : expectation_(expectation), start_(start) {}

void ResponseMeter::on_headers(int status) { status_ = status; }

void ResponseMeter::on_body(std::string_view bytes, TimePoint now, simdjson::dom::parser& parser) {
  if (status_ != 200) {
    body_.append(bytes.substr(0, kMaxErrorBody - std::min(kMaxErrorBody, body_.size())));
    return;
  }
  if (!expectation_.stream) {
    if (body_.size() + bytes.size() > kMaxBody) return fail("the answer is too large");
    body_.append(bytes);
    result_.latency_s = since_start(now);
    return;
  }
  if (!sse_.feed(bytes, [&](std::string_view data) { on_event(data, now, parser); })) fail("an event is too large");
}

void ResponseMeter::on_event(std::string_view data, TimePoint now, simdjson::dom::parser& parser) {
  result_.latency_s = since_start(now);
  if (data == "[DONE]") return;
  Element event;
  if (auto error = parser.parse(data.data(), data.size(), true).get(event)) {
    return fail(fmt::format("an event is not JSON ({}): {}", simdjson::error_message(error), one_line(data)));
  }
  Element problem;
  if (!event["error"].get(problem) && !problem.is_null()) return fail(error_message(problem));
  std::string_view object;
  if (!event["object"].get(object) && object == "error") return fail(describe_error_body(data));
  if (expectation_.dialect == Dialect::kNative) {
    on_native(event, now);
  } else {
    on_openai(event, now);
  }
}

void ResponseMeter::note_completion(int64_t tokens, TimePoint now) {
  completion_tokens_ = tokens;
  if (tokens > 0 && !first_token_s_) first_token_s_ = since_start(now);
}

// The text is cumulative. A gap between two events with text is shared by the tokens that came with the second.
void ResponseMeter::on_native(Element event, TimePoint now) {
  int64_t tokens = 0;
  if (!event["meta_info"]["completion_tokens"].get(tokens)) note_completion(tokens, now);
  Element reason;
  if (!event["meta_info"]["finish_reason"].get(reason) && !reason.is_null()) {
    finished_ = true;
    std::string_view type, message;
    if (!reason["type"].get(type) && type == "abort") {
      fail(reason["message"].get(message) ? "aborted" : "aborted: " + one_line(message));
    }
  }
  std::string_view text;
  if (event["text"].get(text) || text.empty()) return;
  result_.generated_text.assign(text);
  if (!result_.ttft_s) {
    result_.ttft_s = since_start(now);
  } else {
    const int64_t fresh = tokens - last_text_tokens_;
    if (fresh <= 0) return;  // a repeat; its time counts for the next token
    result_.itls_s.insert(result_.itls_s.end(), size_t(fresh), seconds(now - last_text_) / double(fresh));
  }
  last_text_ = now;
  last_text_tokens_ = tokens;
}

void ResponseMeter::on_openai(Element event, TimePoint now) {
  int64_t tokens = 0;
  if (!event["usage"]["completion_tokens"].get(tokens)) note_completion(tokens, now);
  Element choice;
  if (event["choices"].at(0).get(choice)) return;  // the closing usage has no choices
  std::string_view reason;
  if (!choice["finish_reason"].get(reason)) {
    finished_ = true;
    if (reason == "abort") fail("aborted");
  }
  std::string_view text;
  const bool chat = expectation_.dialect == Dialect::kChat;
  auto found = !chat ? choice["text"] : choice[expectation_.stream ? "delta" : "message"]["content"];
  if (found.get(text) || text.empty()) return;
  result_.generated_text.append(text);
  if (!result_.ttft_s) {
    result_.ttft_s = since_start(now);
  } else {
    result_.itls_s.push_back(seconds(now - last_text_));
    result_.itl_text_bytes.push_back(uint32_t(text.size()));
  }
  last_text_ = now;
}

void ResponseMeter::fail(std::string error) {
  if (failure_.empty()) failure_ = std::move(error);
}

std::string ResponseMeter::judge(const Status& end) const {
  if (status_ != 0 && status_ != 200) return fmt::format("HTTP {}: {}", status_, describe_error_body(body_));
  if (!end && (failure_.empty() || expectation_.count_failures_as_success)) return end.error().message;
  if (status_ == 0) return "no answer";
  if (expectation_.count_failures_as_success) return "";
  if (!failure_.empty()) return failure_;
  if (!finished_) return "the answer ended without a finish reason";
  if (expectation_.full_length && completion_tokens_ && *completion_tokens_ < expectation_.output_len) {
    return fmt::format("short answer: {} of {} tokens", *completion_tokens_, expectation_.output_len);
  }
  return "";
}

RequestResult ResponseMeter::finish(Status end, TimePoint now, simdjson::dom::parser& parser) {
  if (status_ == 200 && !expectation_.stream && end) {
    const double latency = result_.latency_s;
    on_event(body_, now, parser);
    // The whole answer is one event, which arrived with its last byte.
    result_.latency_s = latency;
    if (result_.ttft_s) result_.ttft_s = latency;
    if (first_token_s_) first_token_s_ = latency;
  }
  result_.error = judge(end);
  result_.success = result_.error.empty();
  result_.output_len = int32_t(completion_tokens_.value_or(expectation_.output_len));
  if (expectation_.count_failures_as_success) {
    // As SGLang's client: an answer without text is taken to have the tokens asked for, at once.
    const bool native_text = expectation_.dialect == Dialect::kNative && result_.ttft_s;
    if (native_text) result_.output_len = int32_t(last_text_tokens_);
    if (!result_.ttft_s) result_.output_len = expectation_.output_len;
    result_.ttft_s = result_.ttft_s.value_or(0);
  }
  // Tokens without text (bytes of an unfinished character) arrived all the same.
  if (!result_.ttft_s) result_.ttft_s = first_token_s_;
  return std::move(result_);
}

}  // namespace tandem::loadgen
