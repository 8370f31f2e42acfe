#include "text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>

#include "base/check.h"

namespace tandem::text {
namespace {

constexpr std::string_view kWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";

struct Translation {
  std::string out;
  bool in_class = false;
};

// An escape outside of \p: pattern[at] is the character behind the backslash.
Status translate_escape(char c, std::string_view pattern, Translation& t) {
  switch (c) {
    // PCRE2's \s has U+180E, which is no white space any more; \w has no marks.
    case 's': t.out += R"(\p{White_Space})"; return Ok{};
    case 'S': t.out += R"(\P{White_Space})"; return Ok{};
    case 'w': t.out += t.in_class ? std::string(kWord) : fmt::format("[{}]", kWord); return Ok{};
    case 'W':
      if (!t.in_class) {
        t.out += fmt::format("[^{}]", kWord);
        return Ok{};
      }
      [[fallthrough]];
    case 'h':
    case 'H':
    case 'R':
    case 'X':
    case 'K':
    case 'G':
    case 'y':
    case 'Y':
    case 'C':
    case 'M': return invalid_input(fmt::format("regular expression '{}': \\{} is not understood here", pattern, c));
    default: t.out += {'\\', c}; return Ok{};
  }
}

}  // namespace

Result<std::string> translate_onig(std::string_view pattern) {
  Translation t;
  for (size_t i = 0; i < pattern.size(); ++i) {
    char c = pattern[i];
    std::string_view rest = pattern.substr(i);
    if (c == '\\' && i + 1 < pattern.size()) {
      RETURN_IF_ERROR(translate_escape(pattern[++i], pattern, t));
      continue;
    }
    if (!t.in_class && rest.starts_with("(*")) {
      return invalid_input(fmt::format("regular expression '{}': verbs are not understood", pattern));
    }
    if (t.in_class && (c == '[' || rest.starts_with("&&"))) {
      return invalid_input(fmt::format("regular expression '{}': nested classes are not understood", pattern));
    }
    t.out += c;
    if (t.in_class) {
      t.in_class = c != ']';
    } else if (c == '[') {
      t.in_class = true;
      // A bracket first in a class is a member of it, also behind the negation.
      if (rest.starts_with("[^")) t.out += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') t.out += pattern[++i];
    }
  }
  return std::move(t.out);
}

void Regex::CodeFree::operator()(pcre2_code* code) const { pcre2_code_free(code); }
void Matcher::DataFree::operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }

Result<Regex> Regex::compile(std::string_view onig_pattern) {
  ASSIGN_OR_RETURN(std::string pattern, translate_onig(onig_pattern));
  int error = 0;
  PCRE2_SIZE offset = 0;
  // ^ and $ match at every line in Oniguruma's default (Ruby) syntax.
  uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  Regex regex;
  regex.code_.reset(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options, &error, &offset, nullptr));
  if (!regex.code_) {
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(error, message, sizeof message);
    return invalid_input(fmt::format("regular expression '{}': {} (at byte {})", onig_pattern,
                                     reinterpret_cast<const char*>(message), offset));
  }
  // Without JIT (forbidden pages, a pattern it cannot do) matching is slower and otherwise the same.
  pcre2_jit_compile(regex.code_.get(), PCRE2_JIT_COMPLETE);
  return regex;
}

size_t Regex::min_length() const {
  uint32_t length = 0;
  CHECK(pcre2_pattern_info(code_.get(), PCRE2_INFO_MINLENGTH, &length) == 0);
  return length;
}

Matcher::Matcher(const Regex& regex)
    : regex_(&regex), data_(pcre2_match_data_create_from_pattern(regex.code_.get(), nullptr)) {
  CHECK(data_ != nullptr);
}

std::optional<Match> Matcher::search(std::string_view subject, size_t from) {
  auto bytes = reinterpret_cast<PCRE2_SPTR>(subject.data());
  const pcre2_code* code = regex_->code_.get();
  int rc = pcre2_match(code, bytes, subject.size(), from, PCRE2_NO_UTF_CHECK, data_.get(), nullptr);
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
    rc = pcre2_match(code, bytes, subject.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data_.get(), nullptr);
  }
  if (rc < 0) return std::nullopt;
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(data_.get());
  // A lookaround may end before it begins; such a match is an empty one.
  return Match{offsets[0], std::max(offsets[0], offsets[1])};
}

}  // namespace tandem::text
