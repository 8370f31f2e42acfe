// Normalizer: what happens to the text between added tokens before it is cut into words: tokenizer.json's normalizer, a
// sequence of steps as Hugging Face tokenizers define them. Immutable; any thread.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "text/regex.h"
#include "text/unicode.h"

namespace tandem::text {

class Normalizer {
 public:
  struct Lowercase {};
  struct Replace {
    Regex pattern;
    std::string content;  // taken as it is: no references to groups
  };
  struct Strip {
    bool left = true, right = true;
  };
  struct Prepend {
    std::string content;  // put before a text that is not empty
  };
  using Step = std::variant<NormalForm, Lowercase, Replace, Strip, Prepend>;

  Normalizer() = default;
  explicit Normalizer(std::vector<Step> steps) : steps_(std::move(steps)) {}

  bool empty() const { return steps_.empty(); }
  // text: valid UTF-8, and so is what comes back.
  std::string normalize(std::string_view text) const;

 private:
  std::vector<Step> steps_;
};

}  // namespace tandem::text
