#include "text/pattern_load.h"

#include <string>

namespace tandem::text {
namespace {

std::string quote_literal(std::string_view text) {
  std::string out;
  for (char c : text) {
    bool letter = (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') || (c & 0x80);
    if (!letter) out += '\\';
    out += c;
  }
  return out;
}

}  // namespace

Result<Regex> compile_pattern(const JsonReader& json, std::string_view expression) {
  auto regex = Regex::compile(expression);
  if (!regex) return json.wrong("pattern", fmt::format("is not understood: {}", regex.error().message));
  return regex;
}

Result<Regex> parse_pattern(const JsonReader& json) {
  ASSIGN_OR_RETURN(JsonReader pattern, json.child("pattern"));
  if (pattern.find("Regex")) {
    ASSIGN_OR_RETURN(std::string_view expression, pattern.string("Regex"));
    return compile_pattern(json, expression);
  }
  ASSIGN_OR_RETURN(std::string_view text, pattern.string("String"));
  return compile_pattern(json, quote_literal(text));
}

}  // namespace tandem::text
