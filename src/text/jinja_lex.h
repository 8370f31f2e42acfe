// Template source to tags and tags to tokens. Private to the room.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace tandem::text::jinja {

struct Tag {
  enum Kind { kText, kOutput, kStatement } kind;
  std::string text;  // literal text after whitespace control, or what stands between the braces
  int line;
};

// Comments are dropped, whitespace control is applied (- and +, trim_blocks, lstrip_blocks, the last newline).
Result<std::vector<Tag>> split_tags(std::string_view source);

struct Token {
  enum Kind { kName, kString, kNumber, kOperator, kEnd } kind;
  std::string text;  // of a string: its value
  int line;
};

// A kEnd token closes the list.
Result<std::vector<Token>> split_tokens(const Tag& tag);

}  // namespace tandem::text::jinja
