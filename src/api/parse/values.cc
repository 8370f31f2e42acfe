#include "api/parse/values.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

namespace tandem::api {
namespace {

using simdjson::dom::element_type;

Error wrong_type(std::string_view path, std::string_view wanted, Element came) {
  return corrupt(fmt::format("{}: wanted {}, got {}", path, wanted, kind_name(came)));
}

std::string_view trimmed(std::string_view text) {
  size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

std::optional<double> number_of(std::string_view text) {
  text = trimmed(text);
  if (!text.empty() && text[0] == '+') text.remove_prefix(1);
  double value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

// The integer that a number or a numeric string spells; nothing: it has a fraction, is too large, or is no number.
std::optional<int64_t> integer_of(Element element) {
  int64_t value;
  if (!element.get_int64().get(value)) return value;
  bool flag;
  if (!element.get_bool().get(flag)) return flag ? 1 : 0;
  std::string_view text;
  std::optional<double> number;
  if (!element.get_string().get(text)) {
    text = trimmed(text);
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (!text.empty() && error == std::errc() && end == text.data() + text.size()) return value;
    number = number_of(text);
  } else {
    double real;
    if (!element.get_double().get(real)) number = real;
  }
  constexpr double kLimit = 9.2e18;
  if (!number || std::floor(*number) != *number || std::abs(*number) > kLimit) return std::nullopt;
  return static_cast<int64_t>(*number);
}

}  // namespace

std::string shown(std::string_view text) {
  constexpr size_t kLimit = 80;
  return text.size() <= kLimit ? std::string(text) : std::string(text.substr(0, kLimit)) + "...";
}

Result<int64_t> to_int(Element element, std::string_view path, int64_t min, int64_t max) {
  if (element.is_null() || element.is_array() || element.is_object()) return wrong_type(path, "an integer", element);
  std::optional<int64_t> value = integer_of(element);
  if (!value) return corrupt(fmt::format("{}: wanted an integer, got {}", path, shown(simdjson::minify(element))));
  if (*value < min || *value > max) {
    return corrupt(fmt::format("{}: wanted an integer from {} to {}, got {}", path, min, max, *value));
  }
  return *value;
}

Result<int32_t> to_int32(Element element, std::string_view path) {
  ASSIGN_OR_RETURN(int64_t value,
                   to_int(element, path, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()));
  return static_cast<int32_t>(value);
}

Result<double> to_double(Element element, std::string_view path) {
  double value;
  if (!element.get_double().get(value)) return value;
  bool flag;
  if (!element.get_bool().get(flag)) return flag ? 1.0 : 0.0;
  std::string_view text;
  if (element.get_string().get(text)) return wrong_type(path, "a number", element);
  std::optional<double> number = number_of(text);
  if (!number) return corrupt(fmt::format("{}: wanted a finite number, got the string \"{}\"", path, shown(text)));
  return *number;
}

Result<bool> to_bool(Element element, std::string_view path) {
  bool value;
  if (!element.get_bool().get(value)) return value;
  double number;
  if (!element.get_double().get(number) && (number == 0 || number == 1)) return number == 1;
  std::string_view text;
  if (!element.get_string().get(text)) {
    std::string lower;
    for (char c : text) lower += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
    for (const char* word : {"1", "true", "t", "yes", "y", "on"}) {
      if (lower == word) return true;
    }
    for (const char* word : {"0", "false", "f", "no", "n", "off"}) {
      if (lower == word) return false;
    }
  }
  return wrong_type(path, "a boolean", element);
}

Result<std::string> to_string(Element element, std::string_view path) {
  std::string_view text;
  if (element.get_string().get(text)) return wrong_type(path, "a string", element);
  return std::string(text);
}

Result<std::vector<std::string>> to_strings(Element element, std::string_view path) {
  std::vector<std::string> out;
  if (!element.is_array()) {
    ASSIGN_OR_RETURN(std::string text, to_string(element, path));
    out.push_back(std::move(text));
    return out;
  }
  for (Element item : simdjson::dom::array(element)) {
    ASSIGN_OR_RETURN(std::string text, to_string(item, path));
    out.push_back(std::move(text));
  }
  return out;
}

Result<std::vector<int32_t>> to_ids(Element element, std::string_view path) {
  if (!element.is_array()) return wrong_type(path, "an array of token ids", element);
  std::vector<int32_t> out;
  for (Element item : simdjson::dom::array(element)) {
    ASSIGN_OR_RETURN(int32_t id, to_int32(item, path));
    out.push_back(id);
  }
  return out;
}

}  // namespace tandem::api
