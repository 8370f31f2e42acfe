#include "api/parse/cursor.h"

#include <fmt/format.h>

#include <algorithm>

#include "api/parse/values.h"

namespace tandem::api {
namespace {

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }
bool ends_scalar(char c) { return is_space(c) || c == ',' || c == ']' || c == '}' || c == ':'; }

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// Four hex digits at `at`; -1: there are none.
int32_t code_unit(std::string_view text, size_t at) {
  if (at + 4 > text.size()) return -1;
  int32_t value = 0;
  for (size_t i = 0; i < 4; ++i) {
    int digit = hex_digit(text[at + i]);
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

void append_utf8(std::string& out, uint32_t code) {
  auto push = [&](uint32_t byte) { out += static_cast<char>(byte); };
  if (code < 0x80) {
    push(code);
  } else if (code < 0x800) {
    push(0xc0 | code >> 6);
    push(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    push(0xe0 | code >> 12);
    push(0x80 | (code >> 6 & 0x3f));
    push(0x80 | (code & 0x3f));
  } else {
    push(0xf0 | code >> 18);
    push(0x80 | (code >> 12 & 0x3f));
    push(0x80 | (code >> 6 & 0x3f));
    push(0x80 | (code & 0x3f));
  }
}

// The escape behind a backslash at text[i]; moves i behind it. False: not a JSON escape, or half a surrogate pair.
bool append_unescaped(std::string& out, std::string_view text, size_t& i) {
  constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
  if (i >= text.size()) return false;
  char c = text[i++];
  if (c != 'u') {
    size_t found = kFrom.find(c);
    if (found == std::string_view::npos) return false;
    out += kTo[found];
    return true;
  }
  int32_t unit = code_unit(text, i);
  if (unit < 0 || (unit >= 0xdc00 && unit <= 0xdfff)) return false;
  i += 4;
  if (unit >= 0xd800 && unit <= 0xdbff) {
    if (i + 6 > text.size() || text[i] != '\\' || text[i + 1] != 'u') return false;
    int32_t low = code_unit(text, i + 2);
    if (low < 0xdc00 || low > 0xdfff) return false;
    i += 6;
    unit = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
  }
  append_utf8(out, static_cast<uint32_t>(unit));
  return true;
}

// A plain integer of at most nine digits that starts at text[at]; the usual token id. Moves at behind it.
bool plain_id(std::string_view text, size_t& at, int32_t& out) {
  size_t i = at;
  int32_t value = 0;
  while (i < text.size() && text[i] >= '0' && text[i] <= '9' && i - at < 9) value = value * 10 + (text[i++] - '0');
  if (i == at || (text[at] == '0' && i - at > 1)) return false;
  if (i < text.size() && !ends_scalar(text[i])) return false;
  at = i;
  out = value;
  return true;
}

}  // namespace

const char* kind_name(Element element) {
  switch (element.type()) {
    case simdjson::dom::element_type::ARRAY: return "an array";
    case simdjson::dom::element_type::OBJECT: return "an object";
    case simdjson::dom::element_type::INT64:
    case simdjson::dom::element_type::UINT64:
    case simdjson::dom::element_type::DOUBLE: return "a number";
    case simdjson::dom::element_type::STRING: return "a string";
    case simdjson::dom::element_type::BOOL: return "a boolean";
    case simdjson::dom::element_type::NULL_VALUE: return "null";
  }
  return "something else";
}

char Cursor::peek() {
  while (at_ < text_.size() && is_space(text_[at_])) ++at_;
  return at_ < text_.size() ? text_[at_] : '\0';
}

bool Cursor::consume(char c) {
  if (peek() != c || at_ == text_.size()) return false;
  ++at_;
  return true;
}

char Cursor::peek_inside() {
  size_t before = at_;
  char inside = peek() ? (++at_, peek()) : '\0';
  at_ = before;
  return inside;
}

Error Cursor::fault(std::string_view path, std::string_view wanted) {
  char c = peek();
  if (at_ >= text_.size())
    return corrupt(fmt::format("{}: wanted {}, but the body ends at byte {}", path, wanted, at_));
  std::string_view came = c == '"'                             ? "a string"
                          : c == '{'                           ? "an object"
                          : c == '['                           ? "an array"
                          : c == 'n'                           ? "null"
                          : c == 't' || c == 'f'               ? "a boolean"
                          : c == '-' || (c >= '0' && c <= '9') ? "a number"
                                                               : "something that is not JSON";
  return corrupt(fmt::format("{}: wanted {}, got {} at byte {}", path, wanted, came, at_));
}

Status Cursor::skip_string(std::string_view path) {
  size_t i = at_ + 1;
  while (i < text_.size() && text_[i] != '"') i += text_[i] == '\\' ? 2 : 1;
  if (i >= text_.size()) return corrupt(fmt::format("{}: the string at byte {} has no end", path, at_));
  at_ = i + 1;
  return Ok{};
}

Result<std::string> Cursor::string(std::string_view path) {
  if (peek() != '"') return fault(path, "a string");
  size_t begin = at_ + 1;
  RETURN_IF_ERROR(skip_string(path));
  std::string_view raw = text_.substr(begin, at_ - 1 - begin);
  std::string out;
  out.reserve(raw.size());
  size_t from = 0;
  for (size_t i = 0; i < raw.size();) {
    auto c = static_cast<unsigned char>(raw[i]);
    if (c < 0x20) {
      return corrupt(fmt::format("{}: control character {:#04x} in a string at byte {}", path, c, begin + i));
    }
    if (c != '\\') {
      ++i;
      continue;
    }
    out.append(raw, from, i - from);
    if (!append_unescaped(out, raw, ++i)) {
      return corrupt(fmt::format("{}: broken escape in a string at byte {}", path, begin + i));
    }
    from = i;
  }
  out.append(raw, from, raw.size() - from);
  return out;
}

Result<std::string_view> Cursor::slice(std::string_view path) {
  char c = peek();
  size_t begin = at_;
  if (c == '"') {
    RETURN_IF_ERROR(skip_string(path));
  } else if (c == '{' || c == '[') {
    int depth = 0;
    do {
      if (at_ >= text_.size()) return corrupt(fmt::format("{}: the value at byte {} has no end", path, begin));
      char now = text_[at_];
      if (now == '"') {
        RETURN_IF_ERROR(skip_string(path));
        continue;
      }
      if (now == '{' || now == '[') ++depth;
      if (now == '}' || now == ']') --depth;
      if (depth > kMaxDepth) return corrupt(fmt::format("{}: nested deeper than {}", path, kMaxDepth));
      ++at_;
    } while (depth > 0);
  } else {
    while (at_ < text_.size() && !ends_scalar(text_[at_])) ++at_;
    if (at_ == begin) return fault(path, "a value");
  }
  return text_.substr(begin, at_ - begin);
}

Result<Element> Cursor::value(std::string_view path) {
  ASSIGN_OR_RETURN(std::string_view raw, slice(path));
  if (raw.size() > kMaxValueBytes) {
    return corrupt(fmt::format("{}: {} bytes, more than the limit of {}", path, raw.size(), kMaxValueBytes));
  }
  Element element;
  if (auto error = parser_.parse(raw.data(), raw.size(), true).get(element)) {
    return corrupt(fmt::format("{}: not valid JSON: {}", path, simdjson::error_message(error)));
  }
  return element;
}

Result<int32_t> Cursor::id(std::string_view path) {
  int32_t plain;
  peek();
  if (plain_id(text_, at_, plain)) return plain;
  ASSIGN_OR_RETURN(Element element, value(path));
  ASSIGN_OR_RETURN(int64_t number, to_int(element, path, INT32_MIN, INT32_MAX));
  return static_cast<int32_t>(number);
}

Result<std::vector<int32_t>> Cursor::ids(std::string_view path) {
  if (!consume('[')) return fault(path, "an array of token ids");
  std::vector<int32_t> out;
  if (consume(']')) return out;
  // Counted first: growing by doubling would cost more memory than the body itself.
  size_t end = std::min(text_.find(']', at_), text_.size());
  out.reserve(1 + static_cast<size_t>(std::count(text_.begin() + static_cast<ptrdiff_t>(at_),
                                                 text_.begin() + static_cast<ptrdiff_t>(end), ',')));
  do {
    ASSIGN_OR_RETURN(int32_t next, id(path));
    out.push_back(next);
  } while (consume(','));
  if (!consume(']')) return fault(path, "',' or ']'");
  return out;
}

Status Cursor::array(std::string_view path, const std::function<Status(size_t index)>& item) {
  if (!consume('[')) return fault(path, "an array");
  if (consume(']')) return Ok{};
  size_t index = 0;
  do {
    RETURN_IF_ERROR(item(index++));
  } while (consume(','));
  if (!consume(']')) return fault(path, "',' or ']'");
  return Ok{};
}

Status Cursor::object(std::string_view path, const std::function<Status(const std::string& key)>& member) {
  if (!consume('{')) return fault(path, "an object");
  if (consume('}')) return Ok{};
  do {
    ASSIGN_OR_RETURN(std::string key, string(path));
    if (!consume(':')) return fault(path, "':'");
    RETURN_IF_ERROR(member(key));
  } while (consume(','));
  if (!consume('}')) return fault(path, "',' or '}'");
  return Ok{};
}

Status parse_body(std::string_view body, const std::function<Status(const std::string& key, Cursor& at)>& member) {
  if (!simdjson::validate_utf8(body.data(), body.size())) return corrupt("body: not valid UTF-8");
  Cursor cursor(body);
  RETURN_IF_ERROR(cursor.object("body", [&](const std::string& key) { return member(key, cursor); }));
  if (!cursor.at_end()) return corrupt("body: more text behind the JSON object");
  return Ok{};
}

}  // namespace tandem::api
