#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>

#include "text/stream_decoder.h"
#include "text/utf8.h"

namespace tandem::text {
namespace {

// Steps of the matcher from one starting point. Useful patterns need few; with kMaxHeldBytes starting points at most
// this bounds what one append can cost.
constexpr uint32_t kMatchLimit = 5000;
constexpr uint32_t kHeapLimitKib = 1024;

template <auto Free>
struct Deleter {
  template <class T>
  void operator()(T* object) const {
    Free(object);
  }
};
template <class T, auto Free>
using Owned = std::unique_ptr<T, Deleter<Free>>;

struct Found {
  size_t begin, end;
  const std::string* pattern;
};

// The better of two: what begins first, then what ends first.
void keep_first(std::optional<Found>& best, const Found& found) {
  if (!best || std::pair(found.begin, found.end) < std::pair(best->begin, best->end)) best = found;
}

// One stop string: Knuth-Morris-Pratt, a byte at a time.
class Literal {
 public:
  explicit Literal(std::string pattern) : pattern_(std::move(pattern)), failure_(pattern_.size() + 1) {
    for (size_t i = 1, k = 0; i < pattern_.size(); failure_[++i] = k) {
      while (k > 0 && pattern_[i] != pattern_[k]) k = failure_[k];
      if (pattern_[i] == pattern_[k]) ++k;
    }
  }
  // True where the pattern ends with this byte.
  bool feed(char c) {
    if (state_ == pattern_.size()) state_ = failure_[state_];
    while (state_ > 0 && pattern_[state_] != c) state_ = failure_[state_];
    if (pattern_[state_] == c) ++state_;
    return state_ == pattern_.size();
  }
  size_t held() const { return state_; }  // so many bytes at the end could become the pattern
  const std::string& pattern() const { return pattern_; }

 private:
  std::string pattern_;
  std::vector<size_t> failure_;  // [length of a matched prefix]: the next shorter one
  size_t state_ = 0;
};

class Expression {
 public:
  static Result<Expression> compile(std::string pattern) {
    if (pattern.size() > StopMatcher::kMaxPatternBytes) {
      return invalid_input(fmt::format("stop_regex: has {} bytes, at most {} are allowed", pattern.size(),
                                       StopMatcher::kMaxPatternBytes));
    }
    Expression result;
    int error = 0;
    PCRE2_SIZE at = 0;
    result.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                     PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &at, nullptr));
    if (!result.code_) {
      PCRE2_UCHAR message[256];
      pcre2_get_error_message(error, message, sizeof message);
      return invalid_input(fmt::format("stop_regex: '{}' is not a regular expression: {} (at byte {})", pattern,
                                       reinterpret_cast<const char*>(message), at));
    }
    uint32_t matches_empty = 0;
    pcre2_pattern_info(result.code_.get(), PCRE2_INFO_MATCHEMPTY, &matches_empty);
    if (matches_empty) {
      return invalid_input(fmt::format("stop_regex: '{}' matches the empty text, it would stop at once", pattern));
    }
    result.data_.reset(pcre2_match_data_create_from_pattern(result.code_.get(), nullptr));
    result.limits_.reset(pcre2_match_context_create(nullptr));
    pcre2_set_match_limit(result.limits_.get(), kMatchLimit);
    pcre2_set_depth_limit(result.limits_.get(), kMatchLimit);
    pcre2_set_heap_limit(result.limits_.get(), kHeapLimitKib);
    result.pattern_ = std::move(pattern);
    return result;
  }

  // Searches what came since the last call, and what that left open.
  std::optional<Found> search(const std::string& text) {
    if (given_up_) return std::nullopt;
    int rc = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), open_,
                         PCRE2_NO_UTF_CHECK | PCRE2_PARTIAL_SOFT | PCRE2_NOTEMPTY, data_.get(), limits_.get());
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(data_.get());
    // \K may place the beginning anywhere in the match; a lookahead may end before it.
    if (rc >= 0)
      return Found{std::max(open_, std::min(offsets[0], offsets[1])), std::max(open_, offsets[1]), &pattern_};
    given_up_ = rc != PCRE2_ERROR_NOMATCH && rc != PCRE2_ERROR_PARTIAL;
    size_t open = rc == PCRE2_ERROR_PARTIAL ? std::max(open_, offsets[0]) : text.size();
    if (text.size() - open > StopMatcher::kMaxHeldBytes) {
      open = text.size() - StopMatcher::kMaxHeldBytes;
      while ((static_cast<unsigned char>(text[open]) & 0xC0) == 0x80) ++open;
    }
    open_ = open;
    return std::nullopt;
  }
  size_t open() const { return open_; }  // a match may still begin here, not before

 private:
  Owned<pcre2_code, pcre2_code_free> code_;
  Owned<pcre2_match_data, pcre2_match_data_free> data_;
  Owned<pcre2_match_context, pcre2_match_context_free> limits_;
  std::string pattern_;
  size_t open_ = 0;
  bool given_up_ = false;
};

}  // namespace

struct StopMatcher::Impl {
  std::vector<Literal> literals;
  std::vector<Expression> expressions;
  bool trim = true;
  std::string text;     // all of it: expressions may look back. Bounded by the length of one generation.
  size_t released = 0;  // bytes of text that were sent

  std::optional<Found> find(size_t from) {
    std::optional<Found> best;
    for (size_t i = from; i < text.size() && !best; ++i) {
      for (Literal& literal : literals) {
        if (literal.feed(text[i])) keep_first(best, {i + 1 - literal.pattern().size(), i + 1, &literal.pattern()});
      }
    }
    for (Expression& expression : expressions) {
      if (auto found = expression.search(text)) keep_first(best, *found);
    }
    return best;
  }
  std::string release(size_t end) {
    end = std::max(end, released);
    std::string out = text.substr(released, end - released);
    released = end;
    return out;
  }
};

StopMatcher::StopMatcher() : impl_(std::make_unique<Impl>()) {}
StopMatcher::~StopMatcher() = default;
StopMatcher::StopMatcher(StopMatcher&&) noexcept = default;
StopMatcher& StopMatcher::operator=(StopMatcher&&) noexcept = default;

Result<StopMatcher> StopMatcher::create(std::vector<std::string> stop, std::vector<std::string> stop_regex, bool trim) {
  StopMatcher matcher;
  matcher.impl_->trim = trim;
  for (std::string& text : stop) {
    if (text.empty()) return invalid_input("stop: an empty string would stop at once");
    if (!is_valid_utf8(text)) return invalid_input("stop: a string is not valid UTF-8");
    if (text.size() > kMaxPatternBytes) {
      return invalid_input(
          fmt::format("stop: a string has {} bytes, at most {} are allowed", text.size(), kMaxPatternBytes));
    }
    matcher.impl_->literals.emplace_back(std::move(text));
  }
  for (std::string& pattern : stop_regex) {
    if (pattern.empty()) return invalid_input("stop_regex: an empty expression would stop at once");
    ASSIGN_OR_RETURN(Expression expression, Expression::compile(std::move(pattern)));
    matcher.impl_->expressions.push_back(std::move(expression));
  }
  return matcher;
}

std::string StopMatcher::append(std::string_view text) {
  if (matched_ || text.empty()) return {};
  Impl& impl = *impl_;
  if (impl.literals.empty() && impl.expressions.empty()) return std::string(text);
  size_t from = impl.text.size();
  impl.text += is_valid_utf8(text) ? std::string(text) : to_valid_utf8(text);
  if (auto found = impl.find(from)) {
    matched_ = *found->pattern;
    return impl.release(impl.trim ? found->begin : found->end);
  }
  size_t held = 0;
  for (const Literal& literal : impl.literals) held = std::max(held, literal.held());
  size_t end = impl.text.size() - held;
  for (const Expression& expression : impl.expressions) end = std::min(end, expression.open());
  return impl.release(end);
}

std::string StopMatcher::finish() {
  if (matched_) return {};
  return impl_->release(impl_->text.size());
}

}  // namespace tandem::text
