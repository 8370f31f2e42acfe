#include "text/jinja_ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "text/utf8.h"

namespace tandem::text::jinja {
namespace {

constexpr std::array<std::string_view, 9> kMethods = {"split",      "strip",    "lstrip", "rstrip", "upper",
                                                      "startswith", "endswith", "lower",  "get"};
// tojson is known because templates spell tools with it; tools are not given to them, so it never runs.
constexpr std::array<std::string_view, 9> kFilters = {"trim", "length", "upper",  "lower", "first",
                                                      "last", "count",  "string", "tojson"};
constexpr std::array<std::string_view, 11> kTests = {"defined", "undefined", "none",    "string", "mapping", "iterable",
                                                     "true",    "false",     "boolean", "number", "sequence"};
constexpr std::array<std::string_view, 2> kFunctions = {"namespace", "raise_exception"};

template <size_t N>
bool contains(const std::array<std::string_view, N>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Error cannot(std::string_view what, const Value& a) {
  return invalid_input(fmt::format("'{}' cannot be done with {}", what, type_name(a)));
}
Error cannot(std::string_view what, const Value& a, const Value& b) {
  return invalid_input(fmt::format("'{}' cannot be done with {} and {}", what, type_name(a), type_name(b)));
}

std::string strip(std::string_view text, std::string_view chars, bool left, bool right) {
  if (left) text.remove_prefix(std::min(text.find_first_not_of(chars), text.size()));
  if (right) text = text.substr(0, text.find_last_not_of(chars) + 1);
  return std::string(text);
}

// ASCII only: what templates change the case of are roles and names.
std::string change_case(std::string text, bool upper) {
  for (char& c : text) {
    bool letter = upper ? c >= 'a' && c <= 'z' : c >= 'A' && c <= 'Z';
    if (letter) c ^= 0x20;
  }
  return text;
}

// At most max_splits cuts; negative: no limit.
Value split(std::string_view text, std::string_view separator, int64_t max_splits) {
  std::vector<Value> parts;
  for (size_t at = 0;;) {
    size_t found = max_splits-- == 0 ? text.npos : text.find(separator, at);
    parts.push_back(Value::text(std::string(text.substr(at, found == text.npos ? found : found - at))));
    if (found == text.npos) break;
    at = found + separator.size();
  }
  return List(std::make_shared<const std::vector<Value>>(std::move(parts)));
}

int64_t num_chars(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

// The byte where character number `index` begins; index <= num_chars.
size_t byte_of_char(std::string_view text, int64_t index) {
  size_t at = 0;
  while (index-- > 0) at += char_length(static_cast<unsigned char>(text[at]));
  return at;
}

Result<int64_t> length_of(const Value& value) {
  if (auto* text = value.get<Text>()) return num_chars(**text);
  if (auto* list = value.get<List>()) return static_cast<int64_t>((*list)->size());
  if (auto* object = value.get<Object>()) return static_cast<int64_t>((*object)->size());
  if (value.get<Undefined>()) return int64_t{0};
  return cannot("length", value);
}

Result<Value> arithmetic(std::string_view name, int64_t a, int64_t b) {
  constexpr int64_t kLimit = int64_t{1} << 31;
  if (std::abs(a) > kLimit || std::abs(b) > kLimit) return invalid_input("a number is too large");
  if (name == "+") return Value(a + b);
  if (name == "-") return Value(a - b);
  if (name == "*") return Value(a * b);
  if (b == 0) return invalid_input("division by zero");
  // Python rounds towards minus infinity.
  int64_t quotient = a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
  return name == "//" ? Value(quotient) : Value(a - quotient * b);
}

Result<bool> includes(const Value& needle, const Value& heap) {
  if (auto* text = heap.get<Text>()) {
    if (auto* part = needle.get<Text>()) return (*text)->find(**part) != std::string::npos;
  } else if (auto* object = heap.get<Object>()) {
    if (auto* key = needle.get<Text>()) return (*object)->contains(**key);
  } else if (auto* list = heap.get<List>()) {
    return std::any_of((*list)->begin(), (*list)->end(), [&](const Value& entry) { return equal(entry, needle); });
  } else if (heap.get<Undefined>()) {
    return false;
  }
  return cannot("in", needle, heap);
}

Result<bool> less(std::string_view name, const Value& a, const Value& b) {
  if (a.get<int64_t>() && b.get<int64_t>()) return *a.get<int64_t>() < *b.get<int64_t>();
  if (a.get<Text>() && b.get<Text>()) return **a.get<Text>() < **b.get<Text>();
  return cannot(name, a, b);
}

}  // namespace

bool is_method(std::string_view name) { return contains(kMethods, name); }
bool is_filter(std::string_view name) { return contains(kFilters, name); }
bool is_test(std::string_view name) { return contains(kTests, name); }
bool is_function(std::string_view name) { return contains(kFunctions, name); }

const char* type_name(const Value& value) {
  constexpr std::array<const char*, 7> kNames = {"an undefined value", "none",   "a boolean", "a number",
                                                 "a string",           "a list", "an object"};
  return kNames[value.data.index()];
}

bool truthy(const Value& value) {
  if (auto* flag = value.get<bool>()) return *flag;
  if (auto* number = value.get<int64_t>()) return *number != 0;
  if (auto* text = value.get<Text>()) return !(*text)->empty();
  if (auto* list = value.get<List>()) return !(*list)->empty();
  return value.get<Object>() != nullptr && !(*value.get<Object>())->empty();
}

bool equal(const Value& a, const Value& b) {
  // As in Python, true is 1.
  if (a.get<bool>() && b.get<int64_t>()) return *a.get<bool>() == *b.get<int64_t>();
  if (a.get<int64_t>() && b.get<bool>()) return equal(b, a);
  if (a.data.index() != b.data.index()) return false;
  if (auto* flag = a.get<bool>()) return *flag == *b.get<bool>();
  if (auto* number = a.get<int64_t>()) return *number == *b.get<int64_t>();
  if (auto* text = a.get<Text>()) return **text == **b.get<Text>();
  if (auto* list = a.get<List>()) {
    return std::equal((*list)->begin(), (*list)->end(), (*b.get<List>())->begin(), (*b.get<List>())->end(), equal);
  }
  if (auto* object = a.get<Object>()) return *object == *b.get<Object>();  // the same one
  return true;
}

Result<std::string> to_text(const Value& value) {
  if (auto* text = value.get<Text>()) return **text;
  if (value.get<Undefined>()) return std::string();
  if (value.get<None>()) return std::string("None");
  if (auto* flag = value.get<bool>()) return std::string(*flag ? "True" : "False");
  if (auto* number = value.get<int64_t>()) return std::to_string(*number);
  return cannot("output", value);
}

Result<Value> binary(std::string_view name, const Value& a, const Value& b) {
  if (name == "==" || name == "!=") return Value(equal(a, b) == (name == "=="));
  if (name == "in") {
    ASSIGN_OR_RETURN(bool found, includes(a, b));
    return Value(found);
  }
  if (name == "<" || name == ">=") {
    ASSIGN_OR_RETURN(bool result, less(name, a, b));
    return Value(result == (name == "<"));
  }
  if (name == ">" || name == "<=") {
    ASSIGN_OR_RETURN(bool result, less(name, b, a));
    return Value(result == (name == ">"));
  }
  if (name == "~" || (name == "+" && a.get<Text>() && b.get<Text>())) {
    ASSIGN_OR_RETURN(std::string left, to_text(a));
    ASSIGN_OR_RETURN(std::string right, to_text(b));
    return Value::text(left + right);
  }
  if (a.get<int64_t>() && b.get<int64_t>()) return arithmetic(name, *a.get<int64_t>(), *b.get<int64_t>());
  return cannot(name, a, b);
}

Result<Value> field_of(const Value& value, std::string_view name) {
  if (value.get<Undefined>() || value.get<None>()) return cannot(fmt::format(".{}", name), value);
  auto* object = value.get<Object>();
  if (!object) return Value();
  auto found = (*object)->find(name);
  return found == (*object)->end() ? Value() : found->second;
}

Result<Value> index_of(const Value& value, const Value& index) {
  if (auto* key = index.get<Text>()) return field_of(value, **key);
  auto* number = index.get<int64_t>();
  if (!number || (!value.get<List>() && !value.get<Text>())) return cannot("[]", value, index);
  ASSIGN_OR_RETURN(int64_t length, length_of(value));
  int64_t at = *number < 0 ? *number + length : *number;
  if (at < 0 || at >= length) return Value();
  if (auto* list = value.get<List>()) return (**list)[at];
  return slice_of(value, Value(at), Value(at + 1));
}

Result<Value> slice_of(const Value& value, const Value& begin, const Value& end) {
  ASSIGN_OR_RETURN(int64_t length, length_of(value));
  auto bound = [&](const Value& given, int64_t open) {
    auto* number = given.get<int64_t>();
    return number ? std::clamp<int64_t>(*number < 0 ? *number + length : *number, 0, length) : open;
  };
  int64_t from = bound(begin, 0);
  int64_t to = std::max(from, bound(end, length));
  if (auto* list = value.get<List>()) {
    return Value(List(std::make_shared<const std::vector<Value>>((*list)->begin() + from, (*list)->begin() + to)));
  }
  if (auto* text = value.get<Text>()) {
    size_t first = byte_of_char(**text, from), last = byte_of_char(**text, to);
    return Value::text((*text)->substr(first, last - first));
  }
  return cannot("[:]", value);
}

Result<Value> call_method(std::string_view name, const Value& self, std::span<const Value> args) {
  const Text* argument = args.size() == 1 ? args[0].get<Text>() : nullptr;
  if (name == "get") {
    if (!argument || !self.get<Object>()) return cannot(".get()", self);
    ASSIGN_OR_RETURN(Value found, field_of(self, **argument));
    return found.get<Undefined>() ? Value(None{}) : found;
  }
  auto* text = self.get<Text>();
  if (!text) return cannot(fmt::format(".{}()", name), self);
  if (name == "split" && (argument || args.size() == 2)) {
    auto* separator = args[0].get<Text>();
    auto* limit = args.size() == 2 ? args[1].get<int64_t>() : nullptr;
    if (!separator || (*separator)->empty() || (args.size() == 2 && !limit)) return cannot(".split()", self, args[0]);
    return split(**text, **separator, limit ? *limit : -1);
  }
  if (name == "startswith" && argument) return Value((*text)->starts_with(**argument));
  if (name == "endswith" && argument) return Value((*text)->ends_with(**argument));
  if (args.empty() && (name == "upper" || name == "lower")) return Value::text(change_case(**text, name == "upper"));
  if (name.ends_with("strip") && (args.empty() || argument)) {
    std::string_view chars = argument ? std::string_view(**argument) : " \t\n\r\v\f";
    if (std::any_of(chars.begin(), chars.end(), [](char c) { return c & 0x80; })) return cannot("strip of", args[0]);
    return Value::text(strip(**text, chars, name != "rstrip", name != "lstrip"));
  }
  return invalid_input(fmt::format("method '{}' with these {} arguments is not understood", name, args.size()));
}

Result<Value> apply_filter(std::string_view name, const Value& value, std::span<const Value> args) {
  if (!args.empty() || name == "tojson") {
    return invalid_input(fmt::format("filter '{}' is not understood with {} arguments", name, args.size()));
  }
  if (name == "length" || name == "count") {
    ASSIGN_OR_RETURN(int64_t length, length_of(value));
    return Value(length);
  }
  if (name == "first") return index_of(value, Value(int64_t{0}));
  if (name == "last") return index_of(value, Value(int64_t{-1}));
  ASSIGN_OR_RETURN(std::string text, to_text(value));
  if (name == "trim") return Value::text(strip(text, " \t\n\r\v\f", true, true));
  if (name == "string") return Value::text(std::move(text));
  return Value::text(change_case(std::move(text), name == "upper"));
}

bool apply_test(std::string_view name, const Value& value) {
  if (name == "defined") return !value.get<Undefined>();
  if (name == "undefined") return value.get<Undefined>();
  if (name == "none") return value.get<None>();
  if (name == "string") return value.get<Text>();
  if (name == "mapping") return value.get<Object>();
  if (name == "boolean") return value.get<bool>();
  if (name == "number") return value.get<int64_t>() || value.get<bool>();
  if (name == "true") return value.get<bool>() && *value.get<bool>();
  if (name == "false") return value.get<bool>() && !*value.get<bool>();
  bool sequence = value.get<Text>() || value.get<List>() || value.get<Object>();
  return sequence || (name == "iterable" && value.get<Undefined>());
}

}  // namespace tandem::text::jinja
