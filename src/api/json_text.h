// JSON written straight into a string: what the hot path of streamed answers uses in the place of a document tree.
// Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace tandem::api {

// With quotes. text: UTF-8; bytes that are not become U+FFFD, so that the result is always valid JSON.
void append_json_string(std::string& out, std::string_view text);
// The same without quotes: what may be cached and extended piece by piece (pieces cut at character borders).
void append_json_escaped(std::string& out, std::string_view text);
void append_json_int(std::string& out, int64_t value);
// The shortest text that reads back as the same value, with a fraction or exponent; null where JSON has no such number.
void append_json_number(std::string& out, double value);
void append_json_number(std::string& out, float value);
// Between the entries of a list; nothing before the first.
inline void append_json_comma(std::string& out) {
  if (!out.empty()) out += ',';
}
inline void append_json_bool(std::string& out, bool value) { out += value ? "true" : "false"; }

}  // namespace tandem::api
