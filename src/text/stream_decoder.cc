#include "text/stream_decoder.h"

#include "text/utf8.h"

namespace tandem::text {

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(&tokenizer), skip_special_(skip_special_tokens) {}

std::string StreamDecoder::append(std::span<const int32_t> ids) {
  for (int32_t id : ids) {
    if (!(skip_special_ && tokenizer_->is_special(id))) pending_ += tokenizer_->token_bytes(id);
  }
  std::string text;
  size_t done = append_lossy(pending_, false, text);
  pending_.erase(0, done);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  append_lossy(pending_, true, text);
  pending_.clear();
  return text;
}

}  // namespace tandem::text
