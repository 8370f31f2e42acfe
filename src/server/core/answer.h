// Answer: puts the sequences of one generation request into the words of its dialect, streamed or whole. No sockets, no
// engine; loop's thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "api/call.h"
#include "api/openai.h"
#include "base/clock.h"
#include "net/http_server.h"
#include "server/core/sequence.h"

namespace tandem::server {

struct AnswerOptions {
  api::OpenAiHead head;  // id, model, created of OpenAI answers; the dialect
  bool stream = false;
  bool indexed = false;  // native: a list of objects, each event with its index
  int32_t n = 1;
  bool include_usage = false, continuous_usage = false;
  bool report_cached = false;                // --enable-cache-report
  bool report_times = false;                 // --enable-metrics: more times in meta_info
  double received_ts = 0, submitted_ts = 0;  // unix seconds
};

class Answer {
 public:
  explicit Answer(AnswerOptions options) : options_(std::move(options)) {}
  const AnswerOptions& options() const { return options_; }

  // Stream: events of what is new in this sequence, its finish included once it has one.
  void append_events(Sequence& sequence, double now_ts, std::string& out) const;
  // Stream: usage where asked for, and [DONE].
  void append_end(const std::vector<Sequence>& sequences, std::string& out) const;
  // Not streamed: everything at once. An abort with a status is that error.
  net::HttpResponse whole(std::vector<Sequence>& sequences, double now_ts) const;

 private:
  void append_native(Sequence& sequence, double now_ts, std::string& out) const;
  void append_chat_events(Sequence& sequence, std::string& out) const;
  void append_chunk_event(api::ChunkKind kind, const Sequence& sequence, std::string_view text, std::string& out) const;
  api::OpenAiUsage usage_of(const Sequence& sequence) const;
  api::OpenAiUsage usage_of(const std::vector<Sequence>& sequences) const;

  AnswerOptions options_;
};

// The status that a finished sequence asks for where the answer is not streamed; 0: it is a normal answer.
int error_status(const Sequence& sequence);
// A refused or failed request in its dialect's form; a 503 says when to try again.
net::HttpResponse error_response(api::Dialect dialect, int status, const std::string& message);
// The same as one event and [DONE].
std::string error_events(api::Dialect dialect, int status, const std::string& message);

}  // namespace tandem::server
