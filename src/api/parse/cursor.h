// Cursor: walks a JSON body of any size without a document tree. Large values (prompts) are read straight into their
// final vectors; every other value is cut out and given to simdjson, so memory stays near the size of what is kept. The
// grammar is checked on the way: what the cursor does not look into is checked by simdjson. One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace tandem::api {

using Element = simdjson::dom::element;

class Cursor {
 public:
  // text: valid UTF-8 (see open_body()); borrowed.
  explicit Cursor(std::string_view text) : text_(text) {}

  // The next byte that is not white space, or 0 at the end.
  char peek();
  bool consume(char c);
  // Behind the bracket at the cursor, which does not move: the first byte that is not white space.
  char peek_inside();
  bool at_end() { return peek() == 0 && at_ == text_.size(); }

  // The string, number array or value at the cursor, which moves behind it. path names it in errors (kCorrupt).
  Result<std::string> string(std::string_view path);
  // [1, 2, 3] of ids; also "2" and 2.0, as everywhere in a body.
  Result<std::vector<int32_t>> ids(std::string_view path);
  // A tree of a small value; valid until the next call of value(). Larger than kMaxValueBytes: refused.
  Result<Element> value(std::string_view path);
  // Calls item() with the cursor at each element of the array at the cursor.
  Status array(std::string_view path, const std::function<Status(size_t index)>& item);
  // Calls member(key) with the cursor at each value of the object at the cursor.
  Status object(std::string_view path, const std::function<Status(const std::string& key)>& member);

  static constexpr size_t kMaxValueBytes = size_t(16) << 20;
  static constexpr int kMaxDepth = 256;

 private:
  Error fault(std::string_view path, std::string_view wanted);
  Result<std::string_view> slice(std::string_view path);
  Status skip_string(std::string_view path);
  Result<int32_t> id(std::string_view path);

  std::string_view text_;
  size_t at_ = 0;
  simdjson::dom::parser parser_{kMaxValueBytes};
};

// Checks what holds for every body: UTF-8, one object, nothing behind it; calls member for each of its values.
// Duplicate keys reach member in order, so the last one wins.
Status parse_body(std::string_view body, const std::function<Status(const std::string& key, Cursor& at)>& member);

// "an array", "a number": what came, for messages.
const char* kind_name(Element element);

}  // namespace tandem::api
