// JSON for the rooms: simdjson reads (bodies of hundreds of MB happen), Boost.JSON writes.
// The aliases keep both libraries' names in one place.
#pragma once

#include <simdjson.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <string>
#include <string_view>

#include "base/result.h"

namespace tandem::json {

// To write: json::Object o; o["a"] = 1; json::dump(o).
using Value = boost::json::value;
using Object = boost::json::object;
using Array = boost::json::array;

std::string dump(const Value& value);

// A parsed document that owns its bytes; for configs, headers and small bodies. Large bodies use
// simdjson::ondemand directly. Elements borrow from the Document.
class Document {
 public:
  // name: the file or endpoint, for the message. Errors: kInvalidInput with the position's reason.
  static Result<Document> parse(std::string_view text, std::string_view name);
  static Result<Document> load(const std::string& path);

  simdjson::dom::element root() const { return root_; }

 private:
  std::unique_ptr<simdjson::dom::parser> parser_;
  simdjson::dom::element root_;
};

}  // namespace tandem::json
