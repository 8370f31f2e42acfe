// AddedTokens: the tokens that are recognised in the text itself before it is cut into words, such as <｜User｜>.
// Leftmost, then longest, as Hugging Face tokenizers find them. Immutable; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/regex.h"

namespace tandem::text {

struct AddedToken {
  int32_t id = -1;
  std::string content;  // not empty
  bool special = false;
  bool normalized = false;   // looked for, itself normalized, after the normalizer; hence after those that are not
  bool lstrip = false;       // takes the white space on its left with it
  bool rstrip = false;       // and on its right
  bool single_word = false;  // counts only where no word character touches it
};

struct AddedTokenMatch {
  size_t begin, end;  // white space that it takes included
  int32_t id;
};

// One pass over the text: the tokens that share a value of `normalized`.
class AddedTokens {
 public:
  AddedTokens() = default;
  // Of tokens with the same content the first counts.
  explicit AddedTokens(std::vector<AddedToken> tokens);

  // The first match in text that begins at or after from; text before from belongs to earlier matches. text: valid
  // UTF-8.
  std::optional<AddedTokenMatch> find(std::string_view text, size_t from) const;

 private:
  struct Node {
    std::vector<std::pair<unsigned char, uint32_t>> next;
    int32_t token = -1;  // index into tokens_
  };
  int32_t longest_at(std::string_view text) const;
  bool touches_word(std::string_view text, size_t begin, size_t end) const;
  size_t next_candidate(std::string_view text, size_t from) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_ = std::vector<Node>(1);
  std::array<bool, 256> starts_{};
  int num_starts_ = 0;
  std::optional<Regex> word_;  // a word character; where single_word tokens exist
};

}  // namespace tandem::text
