#include "text/added_tokens.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "text/unicode.h"
#include "text/utf8.h"

namespace tandem::text {

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  for (size_t index = 0; index < tokens_.size(); ++index) {
    uint32_t at = 0;
    for (char c : tokens_[index].content) {
      auto byte = static_cast<unsigned char>(c);
      auto& next = nodes_[at].next;
      auto found = std::find_if(next.begin(), next.end(), [&](const auto& edge) { return edge.first == byte; });
      if (found != next.end()) {
        at = found->second;
      } else {
        auto node = static_cast<uint32_t>(nodes_.size());
        next.emplace_back(byte, node);
        nodes_.emplace_back();
        at = node;
      }
    }
    if (nodes_[at].token < 0) nodes_[at].token = static_cast<int32_t>(index);
    starts_[static_cast<unsigned char>(tokens_[index].content[0])] = true;
  }
  if (std::any_of(tokens_.begin(), tokens_.end(), [](const AddedToken& token) { return token.single_word; })) {
    auto word = Regex::compile(R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}])");
    CHECK(word.has_value());
    word_ = std::move(word).value();
  }
  num_starts_ = static_cast<int>(std::count(starts_.begin(), starts_.end(), true));
}

int32_t AddedTokens::longest_at(std::string_view text) const {
  int32_t best = -1;
  uint32_t at = 0;
  for (char c : text) {
    auto byte = static_cast<unsigned char>(c);
    const auto& next = nodes_[at].next;
    auto found = std::find_if(next.begin(), next.end(), [&](const auto& edge) { return edge.first == byte; });
    if (found == next.end()) break;
    at = found->second;
    if (nodes_[at].token >= 0) best = nodes_[at].token;
  }
  return best;
}

size_t AddedTokens::next_candidate(std::string_view text, size_t from) const {
  if (num_starts_ == 0 || from >= text.size()) return text.size();
  if (num_starts_ == 1) {
    int byte = static_cast<int>(std::find(starts_.begin(), starts_.end(), true) - starts_.begin());
    const void* found = std::memchr(text.data() + from, byte, text.size() - from);
    return found ? static_cast<const char*>(found) - text.data() : text.size();
  }
  while (from < text.size() && !starts_[static_cast<unsigned char>(text[from])]) ++from;
  return from;
}

bool AddedTokens::touches_word(std::string_view text, size_t begin, size_t end) const {
  auto is_word = [&](size_t at) {
    return Matcher(*word_).search(text.substr(at, char_length(static_cast<unsigned char>(text[at]))), 0).has_value();
  };
  return (begin > 0 && is_word(char_before(text, begin))) || (end < text.size() && is_word(end));
}

std::optional<AddedTokenMatch> AddedTokens::find(std::string_view text, size_t from) const {
  size_t begin = next_candidate(text, from);
  while (begin < text.size()) {
    int32_t index = longest_at(text.substr(begin));
    if (index < 0) {
      begin = next_candidate(text, begin + 1);
      continue;
    }
    const AddedToken& token = tokens_[index];
    size_t end = begin + token.content.size();
    if (token.single_word && touches_word(text, begin, end)) {
      begin = next_candidate(text, end);
      continue;
    }
    while (token.lstrip && begin > from && is_white_space(char_at(text, char_before(text, begin)))) {
      begin = char_before(text, begin);
    }
    while (token.rstrip && end < text.size() && is_white_space(char_at(text, end))) {
      end += char_length(static_cast<unsigned char>(text[end]));
    }
    return AddedTokenMatch{begin, end, token.id};
  }
  return std::nullopt;
}

}  // namespace tandem::text
