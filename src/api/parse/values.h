// JSON values into C++ values, as leniently as pydantic: "5" and 5.0 are integers, 1 and "true" are booleans, an
// integer is a number. Anything else is kCorrupt with the path, what was wanted and what came. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "api/parse/cursor.h"

namespace tandem::api {

Result<int64_t> to_int(Element element, std::string_view path, int64_t min, int64_t max);
Result<int32_t> to_int32(Element element, std::string_view path);
Result<double> to_double(Element element, std::string_view path);  // finite
Result<bool> to_bool(Element element, std::string_view path);
Result<std::string> to_string(Element element, std::string_view path);
// A string or an array of strings.
Result<std::vector<std::string>> to_strings(Element element, std::string_view path);
Result<std::vector<int32_t>> to_ids(Element element, std::string_view path);

// What a client sent, short enough for a message.
std::string shown(std::string_view text);

// One value for all prompts of a call, or one for each.
template <class T>
struct OneOrMany {
  std::vector<T> values;
  bool is_list = false;

  bool given() const { return is_list || !values.empty(); }
  T at(size_t index, T fallback) const {
    if (!given()) return fallback;
    return is_list ? values[index] : values[0];
  }
};

// read(element, path) for the element itself, or for each of the array's. null: nothing given.
template <class T, class Read>
Status read_one_or_many(Element element, std::string_view path, OneOrMany<T>& out, const Read& read) {
  out = {};
  if (element.is_null()) return Ok{};
  if (!element.is_array()) {
    ASSIGN_OR_RETURN(T value, read(element, path));
    out.values.push_back(std::move(value));
    return Ok{};
  }
  out.is_list = true;
  for (Element item : simdjson::dom::array(element)) {
    ASSIGN_OR_RETURN(T value, read(item, path));
    out.values.push_back(std::move(value));
  }
  return Ok{};
}

}  // namespace tandem::api
