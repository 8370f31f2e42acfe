#include "text/normalizer.h"

#include <utility>

#include "text/utf8.h"

namespace tandem::text {
namespace {

std::string apply(NormalForm form, std::string text) { return to_normal_form(text, form); }

std::string apply(const Normalizer::Lowercase&, std::string text) { return to_lower_case(text); }

std::string apply(const Normalizer::Replace& step, std::string text) {
  Matcher matcher(step.pattern);
  std::string_view source = text;
  std::string out;
  size_t done = 0, from = 0;  // done is also where the last match ended
  bool matched = false;
  while (from <= source.size() && !source.empty()) {
    std::optional<Match> match = matcher.search(source, from);
    if (!match) break;
    bool empty = match->begin == match->end;
    // An empty match right behind the match before it does not count.
    if (!empty || !matched || match->begin != done) {
      out.append(source.substr(done, match->begin - done)).append(step.content);
      done = match->end;
      matched = true;
    }
    from = match->end;
    if (empty) from += from < source.size() ? char_length(static_cast<unsigned char>(source[from])) : 1;
  }
  if (!matched) return text;
  out.append(source.substr(done));
  return out;
}

std::string apply(const Normalizer::Strip& step, std::string text) {
  size_t begin = 0, end = text.size();
  while (step.left && begin < end && is_white_space(char_at(text, begin))) {
    begin += char_length(static_cast<unsigned char>(text[begin]));
  }
  while (step.right && begin < end && is_white_space(char_at(text, char_before(text, end)))) {
    end = char_before(text, end);
  }
  return text.substr(begin, end - begin);
}

std::string apply(const Normalizer::Prepend& step, std::string text) {
  return text.empty() ? text : step.content + text;
}

}  // namespace

std::string Normalizer::normalize(std::string_view text) const {
  std::string out(text);
  for (const Step& step : steps_) {
    out = std::visit([&](const auto& kind) { return apply(kind, std::move(out)); }, step);
  }
  return out;
}

}  // namespace tandem::text
