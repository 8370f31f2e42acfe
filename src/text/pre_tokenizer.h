// PreTokenizer: cuts text into the words that BPE merges within: tokenizer.json's pre_tokenizer, a sequence of Split,
// Digits and a final ByteLevel. Depth first: a piece goes through all steps before the next piece is cut, so the cost
// in memory does not depend on the text. Immutable; any thread, each with its own Scratch.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "text/regex.h"

namespace tandem::text {

class WordSink {
 public:
  virtual ~WordSink() = default;
  // The word lives until the call returns.
  virtual void word(std::string_view bytes) = 0;
};

class PreTokenizer {
 public:
  enum class Behavior { kIsolated, kRemoved, kContiguous, kMergedWithPrevious, kMergedWithNext };
  struct Step {
    std::optional<Regex> regex;  // none: the piece passes whole
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;            // what the pattern does not match counts as the match
    bool add_prefix_space = false;  // a piece that does not begin with a space gets one, before the pattern
  };
  using Scratch = std::vector<std::optional<Matcher>>;  // one per step

  PreTokenizer() = default;
  explicit PreTokenizer(std::vector<Step> steps) : steps_(std::move(steps)) {}

  Scratch make_scratch() const;  // borrows from this object
  // text: valid UTF-8.
  void split(std::string_view text, Scratch& scratch, WordSink& sink) const { run(0, text, scratch, sink); }

 private:
  class Emitter;
  void run(size_t step, std::string_view piece, Scratch& scratch, WordSink& sink) const;
  void cut(size_t step, std::string_view piece, Scratch& scratch, WordSink& sink) const;

  std::vector<Step> steps_;
};

}  // namespace tandem::text
