// Sequence: one sequence of a generation request on its way back: ids become text, stop strings are found, counts and
// times are kept. Thousands of a batch wait for their first token: what is made with it costs a pointer until then.
// Loop's thread.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "api/native.h"
#include "api/openai.h"
#include "base/clock.h"
#include "text/stream_decoder.h"

namespace tandem::server {

struct SequenceOptions {
  const text::Tokenizer* tokenizer = nullptr;  // null: no text
  api::Dialect dialect = api::Dialect::kNative;
  std::shared_ptr<const api::NativeOptions> native = std::make_shared<api::NativeOptions>();
  api::TokenText token_text;  // OpenAI log-probabilities
  int32_t stream_interval = 1;
  bool keep_text = false;        // OpenAI, not streamed: text() is the whole
  size_t logged_text_bytes = 0;  // of the answer, kept for the request log
};

class Sequence {
 public:
  // sampling's patterns were checked before: a StopMatcher can be made from them.
  // options: the same object for all sequences of a call that have the same, since there may be many thousands of them.
  Sequence(std::shared_ptr<const SequenceOptions> options, const api::SamplingParams& sampling);

  // One token of an event. finish: set if it is the last one and the engine says why. A stop string in the text sets
  // finish() by itself: what the engine still sends is not for the client.
  void take(int32_t token, const api::TokenLogprob* logprob, const api::FinishReason* finish);
  void take_input_logprobs(const std::vector<api::TokenLogprob>& logprobs);
  // The engine's last word; what the matcher and the decoder held back is given out.
  void complete(api::FinishReason finish);
  // Text in front of the answer (echo).
  void prepend(std::string_view text) { add_text(text); }

  // Whether the number of tokens so far is one at which a stream gives an event.
  bool is_due() const;

  bool finished() const { return finish_ != nullptr; }
  const api::FinishReason* finish() const { return finish_.get(); }
  int32_t completion_tokens() const { return completion_tokens_; }

  // OpenAI: text and log-probabilities since clear_delta().
  const std::string& text() const { return texts_ ? texts_->delta : kNoText; }
  const api::OpenAiLogprobs* logprobs() const { return logprobs_.get(); }
  void clear_delta();
  api::NativeSequence& native() { return native_; }
  const std::string& logged_text() const { return texts_ ? texts_->logged : kNoText; }

  // Written by the one who handles the events.
  RequestId id;
  int32_t index = 0;
  std::string rid;
  int32_t prompt_tokens = 0, cached_tokens = 0, total_retractions = 0;
  bool role_sent = false;  // chat
  bool closed = false;     // its last event is out; the engine has no word any more
  std::optional<double> first_sent_ts;
  std::optional<TimePoint> first_token_at, last_token_at;
  double first_token_ts = 0, finished_ts = 0;      // unix seconds; set with the event that brings them
  std::unique_ptr<const api::RequestTimes> times;  // the engine's; null: not known yet, or nobody asks

 private:
  void add_text(std::string_view text);
  void take_text(int32_t token, bool may_match);
  void flush();

  struct Texts {
    std::string delta, logged;
  };
  static const std::string kNoText;
  std::shared_ptr<const SequenceOptions> options_;
  bool no_stop_trim_ = false, skip_special_tokens_ = true;
  std::unique_ptr<text::StreamDecoder> decoder_;  // from the first token to the last
  std::unique_ptr<text::StopMatcher> matcher_;    // null: no stop strings, or no more
  api::NativeSequence native_;
  std::unique_ptr<api::OpenAiLogprobs> logprobs_;  // null: not asked for
  std::unique_ptr<Texts> texts_;                   // null: none, as with native answers that are not logged
  int32_t completion_tokens_ = 0;
  std::unique_ptr<api::FinishReason> finish_;  // null: it goes on
};

}  // namespace tandem::server
