#include "model/parse/config_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace tandem::model {

namespace {

// The offending value as the reader may print it: short, on one line.
std::string shown(simdjson::dom::element element) {
  std::string text = simdjson::minify(element);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

}  // namespace

std::optional<simdjson::dom::element> ConfigReader::find(std::string_view key) const {
  simdjson::dom::element element;
  bool found = overrides_ && overrides_->at_key(key).get(element) == simdjson::SUCCESS;
  if (!found) found = object_.at_key(key).get(element) == simdjson::SUCCESS;
  if (!found || element.is_null()) return std::nullopt;
  return element;
}

void ConfigReader::fail(std::string_view key, std::string_view fault) {
  if (status_) status_ = invalid_input(fmt::format("{}: {} {}", name_, key, fault));
}

int32_t ConfigReader::checked(std::string_view key, simdjson::dom::element element, Range range) {
  int64_t value = 0;
  if (element.get(value) != simdjson::SUCCESS) {
    fail(key, fmt::format("must be an integer, is {}", shown(element)));
    return 0;
  }
  if (value < range.min || value > range.max) {
    fail(key, fmt::format("must be in [{}, {}], is {}", range.min, range.max, value));
    return 0;
  }
  return int32_t(value);
}

int32_t ConfigReader::integer(std::string_view key, Range range) {
  const auto element = find(key);
  if (element) return checked(key, *element, range);
  fail(key, "is missing");
  return 0;
}

int32_t ConfigReader::integer_or(std::string_view key, int32_t otherwise, Range range) {
  const auto element = find(key);
  return element ? checked(key, *element, range) : otherwise;
}

float ConfigReader::number_or(std::string_view key, float otherwise, double min, double max) {
  const auto element = find(key);
  if (!element) return otherwise;
  double value = 0;
  if (element->get(value) != simdjson::SUCCESS) {
    fail(key, fmt::format("must be a number, is {}", shown(*element)));
    return otherwise;
  }
  if (!std::isfinite(value) || value < min || value > max) {
    fail(key, fmt::format("must be in [{:g}, {:g}], is {:g}", min, max, value));
    return otherwise;
  }
  return float(value);
}

bool ConfigReader::boolean_or(std::string_view key, bool otherwise) {
  const auto element = find(key);
  if (!element) return otherwise;
  bool value = otherwise;
  if (element->get(value) != simdjson::SUCCESS) {
    fail(key, fmt::format("must be true or false, is {}", shown(*element)));
  }
  return value;
}

std::string ConfigReader::string_or(std::string_view key, std::string_view otherwise) {
  const auto element = find(key);
  if (!element) return std::string(otherwise);
  std::string_view value;
  if (element->get(value) != simdjson::SUCCESS) {
    fail(key, fmt::format("must be a string, is {}", shown(*element)));
    return std::string(otherwise);
  }
  return std::string(value);
}

std::vector<std::string> ConfigReader::strings(std::string_view key) {
  const auto element = find(key);
  if (!element) return {};
  simdjson::dom::array array;
  std::vector<std::string> values;
  bool good = element->get(array) == simdjson::SUCCESS;
  if (good) {
    for (simdjson::dom::element item : array) {
      std::string_view value;
      good = good && item.get(value) == simdjson::SUCCESS;
      if (good) values.emplace_back(value);
    }
  }
  if (!good) fail(key, fmt::format("must be an array of strings, is {}", shown(*element)));
  return values;
}

std::vector<int32_t> ConfigReader::integers(std::string_view key, Range range) {
  const auto element = find(key);
  if (!element) return {};
  simdjson::dom::array array;
  if (element->get(array) != simdjson::SUCCESS) return {checked(key, *element, range)};
  std::vector<int32_t> values;
  for (simdjson::dom::element item : array) values.push_back(checked(key, item, range));
  return values;
}

std::optional<simdjson::dom::object> ConfigReader::object(std::string_view key) {
  const auto element = find(key);
  if (!element) return std::nullopt;
  simdjson::dom::object value;
  if (element->get(value) != simdjson::SUCCESS) {
    fail(key, fmt::format("must be an object, is {}", shown(*element)));
    return std::nullopt;
  }
  return value;
}

void ConfigReader::allow_only(std::initializer_list<std::string_view> keys) {
  for (const auto& field : object_) {
    if (field.value.is_null() || std::find(keys.begin(), keys.end(), field.key) != keys.end()) continue;
    fail(field.key, fmt::format("is not supported (it is {})", shown(field.value)));
  }
}

}  // namespace tandem::model
