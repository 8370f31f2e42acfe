#include "server/core/generation.h"

#include "base/log.h"
#include "server/core/request_log.h"

namespace tandem::server {

using api::FinishKind;
using api::FinishReason;

Generation::Generation(GenerationParts parts, Answer answer, std::vector<Sequence> sequences,
                       std::shared_ptr<net::ResponseWriter> writer)
    : parts_(parts),
      answer_(std::move(answer)),
      sequences_(std::move(sequences)),
      writer_(std::move(writer)),
      open_(sequences_.size()) {}

void Generation::begin() {
  if (answer_.options().stream)
    writer_->begin(200, "text/event-stream; charset=utf-8", {{"Cache-Control", "no-cache"}});
}

void Generation::on_event(size_t index, api::EngineEvent event) {
  Sequence& sequence = sequences_[index];
  if (sequence.closed) return;
  sequence.prompt_tokens = event.prompt_tokens;
  sequence.cached_tokens = event.cached_tokens;
  sequence.total_retractions = event.total_retractions;
  if (event.times && answer_.options().report_times) {
    sequence.times = std::make_unique<const api::RequestTimes>(*event.times);
  }
  if (!event.input_logprobs.empty()) sequence.take_input_logprobs(event.input_logprobs);
  observe(sequence, event.tokens.size());
  take_tokens(sequence, event);
  if (sequence.finished()) {  // a stop string
    parts_.port->cancel(sequence.id, engine::CancelReason::kStopText, sequence.finish()->matched_text);
    sequence.complete(FinishReason(*sequence.finish()));
    close(sequence);
  } else if (event.finish) {
    sequence.complete(std::move(*event.finish));
    close(sequence);
  }
}

void Generation::take_tokens(Sequence& sequence, api::EngineEvent& event) {
  for (size_t i = 0; i < event.tokens.size(); ++i) {
    bool last = event.finish && i + 1 == event.tokens.size();
    const api::TokenLogprob* logprob = i < event.logprobs.size() ? &event.logprobs[i] : nullptr;
    sequence.take(event.tokens[i], logprob, last ? &*event.finish : nullptr);
    if (sequence.finished()) return;  // what comes behind a stop string is not the client's
    if (!last && sequence.is_due()) emit(sequence);
  }
}

void Generation::observe(Sequence& sequence, size_t tokens) {
  if (tokens == 0) return;
  TimePoint now = parts_.clock->now();
  bool first = !sequence.first_token_at;
  if (first) {
    sequence.first_token_at = now;
    sequence.first_token_ts = parts_.clock->unix_seconds();
  }
  if (parts_.metrics) {
    if (first && !parts_.is_prefill) {
      parts_.metrics->time_to_first_token.observe(sequence.first_token_ts - answer_.options().received_ts);
    }
    if (!first) {
      double each = seconds(now - *sequence.last_token_at) / static_cast<double>(tokens);
      for (size_t i = 0; i < tokens; ++i) parts_.metrics->inter_token_latency.observe(each);
    }
  }
  sequence.last_token_at = now;
}

void Generation::emit(Sequence& sequence) {
  if (answer_.options().stream) answer_.append_events(sequence, parts_.clock->unix_seconds(), out_);
}

void Generation::close(Sequence& sequence) {
  sequence.finished_ts = parts_.clock->unix_seconds();
  emit(sequence);
  sequence.closed = true;
  --open_;
  const double e2e_latency = sequence.finished_ts - answer_.options().received_ts;
  if (parts_.log_level) log::info("{}", finished_line(*parts_.log_level, sequence, e2e_latency));
  if (parts_.metrics) {
    FrontMetrics& metrics = *parts_.metrics;
    metrics.requests.add();
    metrics.prompt_tokens.add(sequence.prompt_tokens);
    metrics.generation_tokens.add(sequence.completion_tokens());
    metrics.cached_tokens.add(sequence.cached_tokens);
    if (sequence.finish()->kind == FinishKind::kAbort) metrics.aborted.add();
    metrics.e2e_latency.observe(e2e_latency);
    metrics.retractions.observe(sequence.total_retractions);
  }
  // One failed sequence fails an answer that is not streamed: the others need not go on.
  if (answer_.options().stream || error_status(sequence) == 0) return;
  for (Sequence& other : sequences_) {
    if (other.closed) continue;
    parts_.port->cancel(other.id, engine::CancelReason::kAborted, "");
    other.closed = true;
    --open_;
  }
}

bool Generation::flush() {
  touched_ = false;
  if (answered_) return true;
  if (!answer_.options().stream) {
    if (!done()) return true;
    answered_ = true;
    writer_->send(answer_.whole(sequences_, parts_.clock->unix_seconds()));
    return true;
  }
  if (done()) answer_.append_end(sequences_, out_);
  if (!out_.empty() && !writer_->write(std::exchange(out_, {}))) return false;
  if (!done()) return true;
  answered_ = true;
  writer_->end();
  return true;
}

void Generation::abandon(engine::CancelReason reason) {
  for (Sequence& sequence : sequences_) {
    if (sequence.closed) continue;
    parts_.port->cancel(sequence.id, reason, "");
    sequence.closed = true;
    --open_;
    if (parts_.metrics) parts_.metrics->aborted.add();
  }
  answered_ = true;
}

void Generation::drop_from(size_t from) {
  for (size_t i = from; i < sequences_.size(); ++i) {
    if (!std::exchange(sequences_[i].closed, true)) --open_;
  }
}

void Generation::fail(const std::string& message, int status) {
  for (Sequence& sequence : sequences_) {
    if (sequence.closed) continue;
    FinishReason finish;
    finish.kind = FinishKind::kAbort;
    finish.message = message;
    finish.status_code = status;
    parts_.port->cancel(sequence.id, engine::CancelReason::kAborted, "");
    sequence.complete(std::move(finish));
    close(sequence);
  }
}

}  // namespace tandem::server
