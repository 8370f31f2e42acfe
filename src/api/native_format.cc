#include <limits>

#include "api/json_text.h"
#include "api/native.h"

namespace tandem::api {
namespace {

// [logprob|null, token_id, text|null]; a logprob that is not finite is null.
void append_triple(std::string& out, float logprob, int32_t id, const TokenText& token_text) {
  out += '[';
  append_json_number(out, logprob);
  out += ',';
  append_json_int(out, id);
  out += ',';
  if (token_text) {
    append_json_string(out, token_text(id));
  } else {
    out += "null";
  }
  out += ']';
}

void append_key(std::string& out, std::string_view key) {
  out += ",\"";
  out += key;
  out += "\":";
}

void append_list(std::string& out, std::string_view key, const std::string& items) {
  append_key(out, key);
  out += '[';
  out += items;
  out += ']';
}

void append_optional(std::string& out, std::string_view key, const std::optional<double>& value) {
  if (!value) return;
  append_key(out, key);
  append_json_number(out, *value);
}

}  // namespace

void append_finish_reason(std::string& out, const FinishReason* finish) {
  if (!finish) {
    out += "null";
    return;
  }
  switch (finish->kind) {
    case FinishKind::kLength:
      out += R"({"type":"length","length":)";
      append_json_int(out, finish->length);
      break;
    case FinishKind::kStopToken:
      out += R"({"type":"stop","matched":)";
      append_json_int(out, finish->matched_token);
      break;
    case FinishKind::kStopText:
      out += R"({"type":"stop","matched":)";
      append_json_string(out, finish->matched_text);
      break;
    case FinishKind::kAbort:
      out += R"({"type":"abort","message":)";
      append_json_string(out, finish->message);
      if (finish->status_code != 0) {
        out += R"(,"status_code":)";
        append_json_int(out, finish->status_code);
        out += finish->status_code == 400 ? R"(,"err_type":"BadRequestError")" : R"(,"err_type":null)";
      }
      break;
  }
  out += '}';
}

void NativeSequence::add_logprob(LogprobLists& lists, const TokenLogprob& logprob) {
  float value = logprob.present ? logprob.logprob : std::numeric_limits<float>::quiet_NaN();
  append_json_comma(lists.token);
  append_triple(lists.token, value, logprob.token, options_->token_text);
  if (options_->with_top) {
    append_json_comma(lists.top);
    if (logprob.present) {
      lists.top += '[';
      bool first = true;
      for (auto [id, top] : logprob.top) {
        if (!first) lists.top += ',';
        first = false;
        append_triple(lists.top, top, id, options_->token_text);
      }
      lists.top += ']';
    } else {
      lists.top += "null";
    }
  }
  if (options_->token_ids_logprob.empty()) return;
  append_json_comma(lists.ids);
  if (!logprob.present) {
    lists.ids += "null";
    return;
  }
  lists.ids += '[';
  size_t count = std::min(logprob.token_ids.size(), options_->token_ids_logprob.size());
  for (size_t i = 0; i < count; ++i) {
    if (i) lists.ids += ',';
    append_triple(lists.ids, logprob.token_ids[i], options_->token_ids_logprob[i], options_->token_text);
  }
  lists.ids += ']';
}

void NativeSequence::add_token(int32_t id, const TokenLogprob* logprob) {
  append_json_comma(ids_);
  append_json_int(ids_, id);
  if (options_->return_logprob && logprob) add_logprob(lists().output, *logprob);
}

void NativeSequence::add_text(std::string_view text) { append_json_escaped(text_, text); }

void NativeSequence::set_input_logprobs(std::span<const TokenLogprob> logprobs) {
  LogprobLists& input = lists().input;
  input = {};
  for (const TokenLogprob& logprob : logprobs) add_logprob(input, logprob);
}

NativeSequence::Logprobs& NativeSequence::lists() {
  if (!logprobs_) logprobs_ = std::make_unique<Logprobs>();
  return *logprobs_;
}

void NativeSequence::append_logprobs(std::string& out) {
  if (!options_->return_logprob) return;
  const auto& [input, output] = lists();
  append_list(out, "input_token_logprobs", input.token);
  append_list(out, "output_token_logprobs", output.token);
  if (options_->with_top) {
    append_list(out, "input_top_logprobs", input.top);
    append_list(out, "output_top_logprobs", output.top);
  }
  if (!options_->token_ids_logprob.empty()) {
    append_list(out, "input_token_ids_logprobs", input.ids);
    append_list(out, "output_token_ids_logprobs", output.ids);
  }
}

void NativeSequence::append_object(std::string& out, const NativeMeta& meta) {
  const size_t listed = logprobs_ ? logprobs_->output.token.size() : 0;
  out.reserve(out.size() + text_.size() + ids_.size() + listed + 512);
  out += '{';
  if (options_->with_text) {
    out += "\"text\":\"";
    out += text_;
    out += "\",";
  }
  out += "\"output_ids\":[";
  out += ids_;
  out += "],\"meta_info\":{\"id\":";
  append_json_string(out, meta.rid);
  append_key(out, "finish_reason");
  append_finish_reason(out, meta.finish);
  append_key(out, "prompt_tokens");
  append_json_int(out, meta.prompt_tokens);
  out += R"(,"weight_version":"default","total_retractions":)";
  append_json_int(out, meta.total_retractions);
  append_logprobs(out);
  append_key(out, "completion_tokens");
  append_json_int(out, meta.completion_tokens);
  append_key(out, "cached_tokens");
  append_json_int(out, meta.cached_tokens);
  append_optional(out, "e2e_latency", meta.e2e_latency);
  append_optional(out, "response_sent_to_client_ts", meta.response_sent_to_client_ts);
  append_optional(out, "queue_time", meta.times.queue_time);
  append_optional(out, "prefill_launch_delay", meta.times.prefill_launch_delay);
  append_optional(out, "prefill_launch_latency", meta.times.prefill_launch_latency);
  append_optional(out, "request_received_ts", meta.request_received_ts);
  append_optional(out, "request_sent_to_scheduler_ts", meta.request_sent_to_scheduler_ts);
  append_optional(out, "prefill_finished_ts", meta.prefill_finished_ts);
  append_optional(out, "decode_finished_ts", meta.decode_finished_ts);
  append_optional(out, "inference_time", meta.inference_time);
  append_optional(out, "decode_throughput", meta.decode_throughput);
  out += '}';
  if (meta.index >= 0) {
    append_key(out, "index");
    append_json_int(out, meta.index);
  }
  out += '}';
  if (options_->disjoint_ids) ids_.clear();
}

}  // namespace tandem::api
