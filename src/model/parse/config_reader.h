// ConfigReader: typed, range-checked reads of one JSON object with overrides on top. The first fault sticks, later
// reads return defaults, so a parser reads straight through and asks status() once. Values; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace tandem::model {

class ConfigReader {
 public:
  // name: for messages ("DIR/config.json" or "config.json: rope_scaling"). The objects outlive the reader.
  ConfigReader(std::string name, simdjson::dom::object object, std::optional<simdjson::dom::object> overrides = {})
      : name_(std::move(name)), object_(object), overrides_(overrides) {}

  // Present and not null.
  bool has(std::string_view key) const { return find(key).has_value(); }

  struct Range {
    int64_t min, max;
  };
  int32_t integer(std::string_view key, Range range);                        // required
  int32_t integer_or(std::string_view key, int32_t otherwise, Range range);  // absent or null: `otherwise`
  // Finite numbers in [min, max].
  float number_or(std::string_view key, float otherwise, double min, double max);
  bool boolean_or(std::string_view key, bool otherwise);
  std::string string_or(std::string_view key, std::string_view otherwise);
  std::vector<std::string> strings(std::string_view key);  // an array of strings; absent: empty
  // One integer or an array of them; absent or null: empty.
  std::vector<int32_t> integers(std::string_view key, Range range);
  std::optional<simdjson::dom::object> object(std::string_view key);
  // Every key of the object must be one of these: for objects in which an unknown key changes the meaning.
  void allow_only(std::initializer_list<std::string_view> keys);

  // Notes a fault of the parser's own, in the same form as the reader's.
  void fail(std::string_view key, std::string_view fault);
  // Takes over the fault of a reader of a nested object.
  void absorb(const ConfigReader& nested) {
    if (status_) status_ = nested.status_;
  }
  const Status& status() const { return status_; }
  const std::string& name() const { return name_; }

 private:
  std::optional<simdjson::dom::element> find(std::string_view key) const;
  int32_t checked(std::string_view key, simdjson::dom::element element, Range range);

  const std::string name_;
  const simdjson::dom::object object_;
  const std::optional<simdjson::dom::object> overrides_;
  Status status_ = Ok{};
};

}  // namespace tandem::model
