// Reading members of a JSON object with messages that name file and place. Private to the room.
#pragma once

#include <fmt/format.h>

#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"

namespace tandem::text {

// An object of a file, and where in the file it is. Borrows the document and the names.
class JsonReader {
 public:
  // place: such as "pre_tokenizer"; empty at the top.
  static Result<JsonReader> object(simdjson::dom::element element, std::string_view file, std::string place) {
    simdjson::dom::object object;
    JsonReader reader(file, std::move(place));
    if (element.get(object)) return reader.wrong("", "must be an object");
    reader.object_ = object;
    return reader;
  }

  // The member, or nullopt where it is absent or null.
  std::optional<simdjson::dom::element> find(std::string_view key) const {
    simdjson::dom::element element;
    if (object_[key].get(element) || element.is_null()) return std::nullopt;
    return element;
  }
  Result<std::string_view> string(std::string_view key) const {
    std::string_view value;
    if (object_[key].get(value)) return wrong(key, "must be a string");
    return value;
  }
  Result<bool> boolean(std::string_view key, bool otherwise) const {
    auto element = find(key);
    if (!element) return otherwise;
    bool value = false;
    if (element->get(value)) return wrong(key, "must be true or false");
    return value;
  }
  Result<simdjson::dom::array> array(std::string_view key) const {
    simdjson::dom::array value;
    if (object_[key].get(value)) return wrong(key, "must be an array");
    return value;
  }
  Result<JsonReader> child(std::string_view key) const {
    auto element = find(key);
    if (!element) return wrong(key, "must be an object");
    return object(*element, file_, place(key));
  }
  std::string place(std::string_view key) const {
    return key.empty() ? place_ : place_.empty() ? std::string(key) : fmt::format("{}.{}", place_, key);
  }
  Error wrong(std::string_view key, std::string_view fault) const {
    std::string where = place(key);
    return invalid_input(fmt::format("{}: {} {}", file_, where.empty() ? "the file" : where, fault));
  }
  std::string_view file() const { return file_; }

 private:
  JsonReader(std::string_view file, std::string place) : file_(file), place_(std::move(place)) {}
  simdjson::dom::object object_;
  std::string_view file_;
  std::string place_;
};

}  // namespace tandem::text
