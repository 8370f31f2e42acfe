#include "app/devices.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/json.h"

namespace tandem::app {
namespace {

Status add_list(std::string_view list, std::vector<std::string>& devices) {
  while (true) {
    const size_t comma = std::min(list.find(','), list.size());
    std::string_view name = list.substr(0, comma);
    while (name.starts_with(' ')) name.remove_prefix(1);
    while (name.ends_with(' ')) name.remove_suffix(1);
    if (name.empty()) return invalid_input("an empty name");
    if (std::find(devices.begin(), devices.end(), name) == devices.end()) devices.emplace_back(name);
    if (comma == list.size()) return Ok{};
    list.remove_prefix(comma + 1);
  }
}

Result<std::vector<std::string>> join(const json::Document& document) {
  simdjson::dom::object map;
  if (document.root().get_object().get(map)) return invalid_input("a JSON object was wanted");
  std::vector<std::string> devices;
  for (const auto& [rank, value] : map) {
    std::string_view list;
    if (value.get_string().get(list)) return invalid_input(fmt::format("of '{}': a string was wanted", rank));
    RETURN_IF_ERROR(add_list(list, devices));
  }
  if (devices.empty()) return invalid_input("no device is named");
  return devices;
}

}  // namespace

Result<std::vector<std::string>> parse_devices(std::string_view text) {
  if (text.starts_with("{")) {
    ASSIGN_OR_RETURN(const json::Document document, json::Document::parse(text, "the list of devices"));
    return join(document);
  }
  if (text.ends_with(".json")) {
    ASSIGN_OR_RETURN(const json::Document document, json::Document::load(std::string(text)));
    return join(document);
  }
  std::vector<std::string> devices;
  RETURN_IF_ERROR(add_list(text, devices));
  return devices;
}

}  // namespace tandem::app
