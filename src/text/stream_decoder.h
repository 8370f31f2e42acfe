// From a stream of token ids to a stream of text: never splits a character, linear in the length, matches stop strings
// across token borders. One owner thread per object; borrows the tokenizer.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/tokenizer.h"

namespace tandem::text {

class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens);
  // Adds tokens; returns the text that became complete. The concatenation of all returns plus finish() equals
  // Tokenizer::decode of all ids.
  std::string append(std::span<const int32_t> ids);
  // What is left (incomplete bytes as U+FFFD).
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;  // bytes of an incomplete character
};

// Watches growing text for stop strings and regular expressions (PCRE2). Holds text back while it could still become a
// stop string, so that nothing that will be trimmed has been sent.
//   - A stop string is found where it first ends, however the text is cut; the longest of those that end there counts.
//   - An expression is searched in the text so far after each append, as SGLang does after each token. A match must
//   begin
//     within the last kMaxHeldBytes of what came before; one that is still open further back is given up.
//   - Where both are found at once, what begins first counts.
// Time is linear in the text. An expression that exceeds its budget of steps finds nothing more: hostile patterns end.
class StopMatcher {
 public:
  static constexpr size_t kMaxHeldBytes = 1024;
  static constexpr size_t kMaxPatternBytes = 4096;

  // trim: what matched is not sent either. An invalid, empty or too long pattern, or an expression that matches the
  // empty text, is an error that names it.
  static Result<StopMatcher> create(std::vector<std::string> stop, std::vector<std::string> stop_regex, bool trim);
  ~StopMatcher();
  StopMatcher(StopMatcher&&) noexcept;
  StopMatcher& operator=(StopMatcher&&) noexcept;

  // Feeds new text (whole characters); returns what may be sent. After a match matched() is set and everything behind
  // it is dropped.
  std::string append(std::string_view text);
  // The generation ended without a match: what was held back.
  std::string finish();
  // The stop string or the expression, as it was given.
  const std::optional<std::string>& matched() const { return matched_; }

 private:
  StopMatcher();
  struct Impl;
  std::unique_ptr<Impl> impl_;
  std::optional<std::string> matched_;
};

}  // namespace tandem::text
