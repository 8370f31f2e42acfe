// Regex: one PCRE2 pattern as tokenizers use them, compiled with JIT. Patterns are written for Oniguruma (Hugging
// Face's choice); where the two differ in meaning the pattern is translated, and what cannot be is refused. Immutable
// after compile: match from any thread, each with its own Matcher.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;

namespace tandem::text {

struct Match {
  size_t begin, end;  // bytes of the subject
};

class Regex {
 public:
  static Result<Regex> compile(std::string_view onig_pattern);
  // No match has fewer characters than this (a lower bound).
  size_t min_length() const;

 private:
  friend class Matcher;
  struct CodeFree {
    void operator()(pcre2_real_code_8* code) const;
  };
  std::unique_ptr<pcre2_real_code_8, CodeFree> code_;
};

// Scratch of one thread for one Regex, which it borrows.
class Matcher {
 public:
  explicit Matcher(const Regex& regex);
  // The leftmost match in subject that starts at or after from. subject: valid UTF-8. A search that exceeds the
  // engine's limits (hostile patterns only) finds nothing.
  std::optional<Match> search(std::string_view subject, size_t from);

 private:
  struct DataFree {
    void operator()(pcre2_real_match_data_8* data) const;
  };
  const Regex* regex_;
  std::unique_ptr<pcre2_real_match_data_8, DataFree> data_;
};

// Oniguruma's spelling in PCRE2's. Exposed for tests.
Result<std::string> translate_onig(std::string_view pattern);

}  // namespace tandem::text
