#include "server/core/answer.h"

#include "api/error.h"
#include "api/native.h"

namespace tandem::server {
namespace {

using api::ChunkKind;
using api::Dialect;
using api::FinishKind;

constexpr std::string_view kDone = "data: [DONE]\n\n";

std::string error_body(Dialect dialect, int status, const std::string& message) {
  if (status >= 500) return api::abort_error_body(message, status);
  return dialect == Dialect::kNative ? api::native_error_body(message) : api::openai_error_body(message, status);
}

std::string error_event(Dialect dialect, int status, const std::string& message) {
  std::string body = error_body(dialect, status, message);
  // Native 400s have the "error" key already.
  bool wrapped = dialect == Dialect::kNative && status < 500;
  return wrapped ? "data: " + body + "\n\n" : "data: {\"error\":" + body + "}\n\n";
}

}  // namespace

int error_status(const Sequence& sequence) {
  const api::FinishReason* finish = sequence.finish();
  if (!finish || finish->kind != FinishKind::kAbort) return 0;
  return finish->status_code;
}

net::HttpResponse error_response(Dialect dialect, int status, const std::string& message) {
  net::HttpResponse response;
  response.status = status;
  response.body = error_body(dialect, status, message);
  if (status == 503) response.headers = {{"Retry-After", "1"}};
  return response;
}

std::string error_events(Dialect dialect, int status, const std::string& message) {
  return error_event(dialect, status, message).append(kDone);
}

api::OpenAiUsage Answer::usage_of(const Sequence& sequence) const {
  api::OpenAiUsage usage;
  usage.prompt_tokens = sequence.prompt_tokens;
  usage.completion_tokens = sequence.completion_tokens();
  if (options_.report_cached) usage.cached_tokens = sequence.cached_tokens;
  return usage;
}

api::OpenAiUsage Answer::usage_of(const std::vector<Sequence>& sequences) const {
  api::OpenAiUsage usage;
  int64_t cached = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    usage.completion_tokens += sequences[i].completion_tokens();
    if (i % static_cast<size_t>(options_.n) != 0) continue;  // a prompt counts once
    usage.prompt_tokens += sequences[i].prompt_tokens;
    cached += sequences[i].cached_tokens;
  }
  if (options_.report_cached) usage.cached_tokens = cached;
  return usage;
}

void Answer::append_native(Sequence& sequence, double now_ts, std::string& out) const {
  api::NativeMeta meta;
  meta.rid = sequence.rid;
  meta.index = options_.indexed && options_.stream ? sequence.index : -1;
  meta.prompt_tokens = sequence.prompt_tokens;
  meta.completion_tokens = sequence.completion_tokens();
  meta.cached_tokens = sequence.cached_tokens;
  meta.total_retractions = sequence.total_retractions;
  meta.finish = sequence.finish();
  if (!sequence.first_sent_ts) {
    sequence.first_sent_ts = now_ts;
    meta.response_sent_to_client_ts = now_ts;
  }
  if (sequence.times) meta.times = *sequence.times;
  double end_ts = sequence.finished_ts;
  if (sequence.finished()) meta.e2e_latency = end_ts - options_.received_ts;
  if (sequence.finished() && options_.report_times) {
    meta.request_received_ts = options_.received_ts;
    meta.request_sent_to_scheduler_ts = options_.submitted_ts;
    meta.decode_finished_ts = end_ts;
    meta.inference_time = end_ts - options_.submitted_ts;
    if (sequence.first_token_at) meta.prefill_finished_ts = sequence.first_token_ts;
    double decoding = end_ts - sequence.first_token_ts;
    if (sequence.first_token_at && decoding > 0) meta.decode_throughput = sequence.completion_tokens() / decoding;
  }
  sequence.native().append_object(out, meta);
}

void Answer::append_chunk_event(ChunkKind kind, const Sequence& sequence, std::string_view text,
                                std::string& out) const {
  api::OpenAiChoice choice;
  choice.index = sequence.index;
  choice.text = text;
  bool is_chat = options_.head.dialect == Dialect::kChat;
  if (kind == ChunkKind::kDelta) choice.logprobs = sequence.logprobs();
  if (kind == ChunkKind::kFinish || (kind == ChunkKind::kDelta && !is_chat)) choice.finish = sequence.finish();
  api::OpenAiUsage usage;
  if (options_.continuous_usage) usage = usage_of(sequence);
  out += "data: ";
  api::append_chunk(out, options_.head, kind, choice, options_.continuous_usage ? &usage : nullptr);
  out += "\n\n";
}

void Answer::append_chat_events(Sequence& sequence, std::string& out) const {
  if (!sequence.role_sent) append_chunk_event(ChunkKind::kRole, sequence, "", out);
  sequence.role_sent = true;
  if (!sequence.text().empty() || (sequence.logprobs() && !sequence.logprobs()->empty())) {
    append_chunk_event(ChunkKind::kDelta, sequence, sequence.text(), out);
    sequence.clear_delta();
  }
  if (sequence.finished()) append_chunk_event(ChunkKind::kFinish, sequence, "", out);
}

void Answer::append_events(Sequence& sequence, double now_ts, std::string& out) const {
  if (options_.head.dialect == Dialect::kNative) {
    out += "data: ";
    append_native(sequence, now_ts, out);
    out += "\n\n";
  } else if (int status = error_status(sequence)) {
    out += error_event(options_.head.dialect, status, sequence.finish()->message);
  } else if (options_.head.dialect == Dialect::kChat) {
    append_chat_events(sequence, out);
  } else {
    append_chunk_event(ChunkKind::kDelta, sequence, sequence.text(), out);
    sequence.clear_delta();
  }
}

void Answer::append_end(const std::vector<Sequence>& sequences, std::string& out) const {
  if (options_.head.dialect != Dialect::kNative && options_.include_usage) {
    out += "data: ";
    api::append_usage_chunk(out, options_.head, usage_of(sequences));
    out += "\n\n";
  }
  out += kDone;
}

net::HttpResponse Answer::whole(std::vector<Sequence>& sequences, double now_ts) const {
  for (const Sequence& sequence : sequences) {
    int status = error_status(sequence);
    if (status != 0) return error_response(options_.head.dialect, status, sequence.finish()->message);
  }
  net::HttpResponse response;
  if (options_.head.dialect == Dialect::kNative) {
    if (options_.indexed) response.body += '[';
    for (size_t i = 0; i < sequences.size(); ++i) {
      if (i) response.body += ',';
      append_native(sequences[i], now_ts, response.body);
      // Answers of one call are about as long; a string that grows by doubling would be there three times.
      if (i == 0) response.body.reserve(response.body.size() * sequences.size() * 9 / 8);
    }
    if (options_.indexed) response.body += ']';
    return response;
  }
  std::string choices;
  for (size_t i = 0; i < sequences.size(); ++i) {
    if (i) choices += ',';
    api::OpenAiChoice choice;
    choice.index = sequences[i].index;
    choice.text = sequences[i].text();
    choice.logprobs = sequences[i].logprobs();
    choice.finish = sequences[i].finish();
    api::append_choice(choices, options_.head.dialect, choice);
  }
  response.body = api::format_answer(options_.head, choices, usage_of(sequences));
  return response;
}

}  // namespace tandem::server
