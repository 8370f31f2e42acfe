#include "loadgen/sharegpt.h"

#include <fmt/format.h>

#include "base/json.h"

namespace tandem::loadgen {
namespace {

using Element = simdjson::dom::element;

Result<std::string> turn_text(Element turn, std::string_view where) {
  simdjson::dom::object object;
  if (turn.get(object)) return invalid_input(fmt::format("{}: a turn is not an object", where));
  std::string_view text;
  if (object["value"].get(text) && object["content"].get(text)) {
    return invalid_input(fmt::format("{}: a turn has no text `value`", where));
  }
  return std::string(text);
}

// Adds the entry's conversation, if it has two turns.
Status add_entry(Element entry, std::string_view where, std::vector<Conversation>& out) {
  simdjson::dom::object object;
  if (entry.get(object)) return invalid_input(fmt::format("{}: not an object", where));
  Element list;
  if (object["conversations"].get(list) && object["conversation"].get(list)) return Ok{};
  simdjson::dom::array turns;
  if (list.get(turns)) return invalid_input(fmt::format("{}: `conversations` is not a list", where));
  Element first, second;
  if (turns.at(0).get(first) || turns.at(1).get(second)) return Ok{};
  ASSIGN_OR_RETURN(std::string prompt, turn_text(first, where));
  ASSIGN_OR_RETURN(std::string answer, turn_text(second, where));
  out.push_back({std::move(prompt), std::move(answer)});
  return Ok{};
}

Status parse_list(std::string_view bytes, std::string_view name, std::vector<Conversation>& out) {
  ASSIGN_OR_RETURN(json::Document document, json::Document::parse(bytes, name));
  simdjson::dom::array entries;
  if (document.root().get(entries)) return invalid_input(fmt::format("{}: not a JSON list", name));
  size_t index = 0;
  for (Element entry : entries) {
    RETURN_IF_ERROR(add_entry(entry, fmt::format("{}: entry {}", name, index), out));
    ++index;
  }
  return Ok{};
}

Status parse_lines(std::string_view bytes, std::string_view name, std::vector<Conversation>& out) {
  size_t number = 0;
  while (!bytes.empty()) {
    ++number;
    const size_t end = std::min(bytes.find('\n'), bytes.size());
    std::string_view line = bytes.substr(0, end);
    bytes.remove_prefix(std::min(end + 1, bytes.size()));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}: line {}", name, number);
    ASSIGN_OR_RETURN(json::Document document, json::Document::parse(line, where));
    RETURN_IF_ERROR(add_entry(document.root(), where, out));
  }
  return Ok{};
}

}  // namespace

Result<std::vector<Conversation>> parse_sharegpt(std::string_view bytes, std::string_view name) {
  if (bytes.starts_with("\xEF\xBB\xBF")) bytes.remove_prefix(3);
  const size_t first = bytes.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) return invalid_input(fmt::format("{}: empty", name));
  std::vector<Conversation> out;
  RETURN_IF_ERROR(bytes[first] == '[' ? parse_list(bytes, name, out) : parse_lines(bytes, name, out));
  if (out.empty()) return invalid_input(fmt::format("{}: no conversation with two turns", name));
  return out;
}

Result<std::vector<Conversation>> load_sharegpt(const std::string& path) {
  simdjson::padded_string bytes;
  if (auto error = simdjson::padded_string::load(path).get(bytes)) {
    return not_found(fmt::format("--dataset-path {}: cannot read: {}", path, simdjson::error_message(error)));
  }
  return parse_sharegpt(std::string_view(bytes.data(), bytes.size()), path);
}

}  // namespace tandem::loadgen
