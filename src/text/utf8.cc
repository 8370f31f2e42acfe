#include "text/utf8.h"

#include <algorithm>

#include "base/json.h"

namespace tandem::text {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

struct Sequence {
  size_t length;  // bytes that belong together: the character, or the maximal subpart
  enum { kValid, kInvalid, kIncomplete } kind;
};

// What starts at bytes[0]. bytes is not empty.
Sequence classify(std::string_view bytes) {
  auto byte = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  unsigned char lead = byte(0);
  if (lead < 0x80) return {1, Sequence::kValid};
  if (lead < 0xC2 || lead > 0xF4) return {1, Sequence::kInvalid};
  // The second byte's range excludes overlong forms, surrogates and what lies beyond U+10FFFF.
  unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  size_t length = char_length(lead);
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {i, Sequence::kIncomplete};
    if (byte(i) < low || byte(i) > high) return {i, Sequence::kInvalid};
    low = 0x80, high = 0xBF;
  }
  return {length, Sequence::kValid};
}

}  // namespace

bool is_valid_utf8(std::string_view bytes) { return simdjson::validate_utf8(bytes.data(), bytes.size()); }

size_t append_lossy(std::string_view bytes, bool final, std::string& out) {
  size_t at = 0;
  while (at < bytes.size()) {
    size_t run = at;
    Sequence next{0, Sequence::kValid};
    while (run < bytes.size() && (next = classify(bytes.substr(run))).kind == Sequence::kValid) run += next.length;
    out.append(bytes.substr(at, run - at));
    at = run;
    if (at == bytes.size() || (next.kind == Sequence::kIncomplete && !final)) break;
    out.append(kReplacement);
    at += next.length;
  }
  return at;
}

std::string to_valid_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  append_lossy(bytes, true, out);
  return out;
}

size_t char_before(std::string_view text, size_t end) {
  do --end;
  while ((static_cast<unsigned char>(text[end]) & 0xC0) == 0x80);
  return end;
}

uint32_t char_at(std::string_view text, size_t at) {
  auto lead = static_cast<unsigned char>(text[at]);
  size_t length = char_length(lead);
  if (length == 1) return lead;
  uint32_t code_point = lead & (0x7Fu >> length);
  for (size_t i = 1; i < length; ++i) code_point = code_point << 6 | (static_cast<unsigned char>(text[at + i]) & 0x3Fu);
  return code_point;
}

void append_char(uint32_t c, std::string& out) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
  } else if (c < 0x10000) {
    out += {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 0x3F)),
            static_cast<char>(0x80 | (c & 0x3F))};
  } else {
    out += {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 0x3F)),
            static_cast<char>(0x80 | (c >> 6 & 0x3F)), static_cast<char>(0x80 | (c & 0x3F))};
  }
}

}  // namespace tandem::text
