#include "base/json.h"

#include <fmt/format.h>

namespace tandem::json {

std::string dump(const Value& value) { return boost::json::serialize(value); }

Result<Document> Document::parse(std::string_view text, std::string_view name) {
  if (text.empty()) return invalid_input(fmt::format("{}: not valid JSON: empty", name));  // data() may be null
  Document document;
  document.parser_ = std::make_unique<simdjson::dom::parser>();
  simdjson::error_code error = document.parser_->parse(text.data(), text.size(), true).get(document.root_);
  if (error) return invalid_input(fmt::format("{}: not valid JSON: {}", name, simdjson::error_message(error)));
  return document;
}

Result<Document> Document::load(const std::string& path) {
  simdjson::padded_string bytes;
  if (auto error = simdjson::padded_string::load(path).get(bytes)) {
    return not_found(fmt::format("{}: cannot read: {}", path, simdjson::error_message(error)));
  }
  return parse(std::string_view(bytes.data(), bytes.size()), path);
}

}  // namespace tandem::json
