#include "server/core/sequence.h"

namespace tandem::server {

using api::Dialect;
using api::FinishKind;
using api::FinishReason;

const std::string Sequence::kNoText;

Sequence::Sequence(std::shared_ptr<const SequenceOptions> options, const api::SamplingParams& sampling)
    : options_(std::move(options)),
      no_stop_trim_(sampling.no_stop_trim),
      skip_special_tokens_(sampling.skip_special_tokens),
      native_(options_->native) {
  if (options_->native->return_logprob) logprobs_ = std::make_unique<api::OpenAiLogprobs>(options_->dialect);
  if (!options_->tokenizer) return;
  if (sampling.stop.empty() && sampling.stop_regex.empty()) return;
  auto matcher = text::StopMatcher::create(sampling.stop, sampling.stop_regex, !sampling.no_stop_trim);
  CHECK(matcher.has_value());
  matcher_ = std::make_unique<text::StopMatcher>(std::move(*matcher));
}

void Sequence::add_text(std::string_view text) {
  if (text.empty()) return;
  const bool is_native = options_->dialect == Dialect::kNative;
  if (!texts_ && (!is_native || options_->logged_text_bytes > 0)) texts_ = std::make_unique<Texts>();
  if (texts_ && texts_->logged.size() < options_->logged_text_bytes) {
    texts_->logged += text.substr(0, options_->logged_text_bytes - texts_->logged.size());
  }
  if (is_native) {
    native_.add_text(text);
  } else {
    texts_->delta += text;
  }
}

void Sequence::take(int32_t token, const api::TokenLogprob* logprob, const FinishReason* finish) {
  ++completion_tokens_;
  if (options_->dialect == Dialect::kNative) {
    native_.add_token(token, logprob);
  } else if (logprob && options_->native->return_logprob) {
    logprobs_->add(*logprob, options_->token_text);
  }
  if (!options_->tokenizer) return;
  // The matched stop token is counted and listed, but its text is not part of the answer.
  if (finish && finish->kind == FinishKind::kStopToken && !no_stop_trim_) return;
  // At the length limit stop strings are not looked for any more (serving.md 8.9).
  take_text(token, !finish);
}

void Sequence::take_text(int32_t token, bool may_match) {
  if (!decoder_) decoder_ = std::make_unique<text::StreamDecoder>(*options_->tokenizer, skip_special_tokens_);
  std::string text = decoder_->append({&token, 1});
  if (!matcher_) return add_text(text);
  if (!may_match) {
    add_text(matcher_->finish());
    matcher_.reset();
    return add_text(text);
  }
  add_text(matcher_->append(text));
  if (!matcher_->matched()) return;
  FinishReason finish;
  finish.kind = FinishKind::kStopText;
  finish.matched_text = *matcher_->matched();
  finish_ = std::make_unique<FinishReason>(std::move(finish));
}

void Sequence::take_input_logprobs(const std::vector<api::TokenLogprob>& logprobs) {
  if (!options_->native->return_logprob) return;
  if (options_->dialect == Dialect::kNative) {
    native_.set_input_logprobs(logprobs);
  } else if (options_->dialect == Dialect::kCompletion) {
    for (const api::TokenLogprob& logprob : logprobs) logprobs_->add(logprob, options_->token_text);
  }
}

void Sequence::flush() {
  if (!options_->tokenizer) return;
  std::string rest = decoder_ ? decoder_->finish() : std::string();
  if (matcher_) {
    add_text(matcher_->append(rest));
    if (!matcher_->matched()) add_text(matcher_->finish());
  } else {
    add_text(rest);
  }
}

void Sequence::complete(FinishReason finish) {
  if (!finish_) flush();
  decoder_.reset();
  matcher_.reset();
  finish_ = std::make_unique<FinishReason>(std::move(finish));
}

bool Sequence::is_due() const {
  int32_t interval = options_->stream_interval;
  return interval <= 1 || completion_tokens_ % interval == 1;
}

void Sequence::clear_delta() {
  if (texts_) texts_->delta.clear();
  if (logprobs_) logprobs_->clear();
}

}  // namespace tandem::server
