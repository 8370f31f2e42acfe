// What a load client asks the server under test before and after the load. Blocking; not from a loop's thread.
#pragma once

#include <memory>
#include <string>

#include "base/json.h"
#include "base/result.h"
#include "net/http_client.h"
#include "text/tokenizer.h"

namespace tandem::loadgen {

class Target {
 public:
  // origin: "http://host:port". authorization: header value, or empty.
  static Result<Target> create(const std::string& origin, std::string authorization);

  net::Url url(std::string_view path) const;
  net::Headers headers() const;

  // data[0].id of /v1/models.
  Result<std::string> model_id() const;
  // /get_server_info as it came: one server's, or {"prefill": [...], "decode": [...]} behind a router.
  Result<json::Document> server_info() const;
  Status flush_cache() const;
  // Any answer of status 200; kNotFound for every other, with what the server says.
  Result<std::string> get(std::string_view path) const;
  Result<std::string> post(std::string_view path, std::string body, Duration timeout) const;

 private:
  Target(net::Url url, std::string authorization) : url_(std::move(url)), authorization_(std::move(authorization)) {}
  Result<std::string> ask(const char* method, std::string_view path, Duration timeout, std::string body = {}) const;

  net::Url url_;
  std::string authorization_;
};

// Element 0 of the internal states of a server, or of decode[0] behind a router: info's `key`. Absent: not reported.
std::optional<double> internal_state_number(simdjson::dom::element info, std::string_view key);

// The tokenizer in `path`, a directory or a tokenizer.json.
Result<std::shared_ptr<const text::Tokenizer>> load_tokenizer(const std::string& path);
// Where the tokenizer is: `given` if set, else `model` if that has one here, else what /get_server_info names (at the
// top level or in prefill[0]). The error says what was tried.
Result<std::string> find_tokenizer(const std::string& given, const std::string& model, const Target& target);

}  // namespace tandem::loadgen
