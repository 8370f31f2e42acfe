#include "loadgen/target.h"

#include <fmt/format.h>

#include <filesystem>

#include "loadgen/measure.h"

namespace tandem::loadgen {
namespace {

using Element = simdjson::dom::element;

constexpr Duration kAskTimeout = std::chrono::seconds(30);
// A server answers a flush only between steps.
constexpr Duration kFlushTimeout = std::chrono::seconds(240);

bool has_tokenizer(const std::string& path) {
  std::error_code error;
  const std::filesystem::path file(path);
  return !path.empty() && (std::filesystem::exists(file / "tokenizer.json", error) ||
                           (file.extension() == ".json" && std::filesystem::is_regular_file(file, error)));
}

std::optional<std::string> named_tokenizer(Element info) {
  std::string_view path;
  if (!info["tokenizer_path"].get(path)) return std::string(path);
  if (!info["prefill"].at(0)["tokenizer_path"].get(path)) return std::string(path);
  return std::nullopt;
}

}  // namespace

Result<Target> Target::create(const std::string& origin, std::string authorization) {
  ASSIGN_OR_RETURN(net::Url url, net::parse_url(origin));
  return Target(std::move(url), std::move(authorization));
}

net::Url Target::url(std::string_view path) const {
  net::Url url = url_;
  while (url.path.ends_with('/')) url.path.pop_back();  // a base URL may have a path of its own
  url.path += path;
  return url;
}

net::Headers Target::headers() const {
  net::Headers headers{{"Content-Type", "application/json"}};
  if (!authorization_.empty()) headers.emplace_back("Authorization", authorization_);
  return headers;
}

Result<std::string> Target::ask(const char* method, std::string_view path, Duration timeout, std::string body) const {
  net::ClientRequest request;
  request.method = method;
  request.url = url(path);
  request.headers = headers();
  request.keep_alive = false;
  if (request.method == "POST") request.body = std::make_shared<const std::string>(std::move(body));
  auto response = net::fetch(std::move(request), timeout);
  if (!response) return Error{response.error().code, fmt::format("{} {}: {}", method, path, response.error().message)};
  if (response->status != 200) {
    return not_found(
        fmt::format("{} {}: HTTP {}: {}", method, path, response->status, describe_error_body(response->body)));
  }
  return std::move(response->body);
}

Result<std::string> Target::model_id() const {
  ASSIGN_OR_RETURN(std::string body, ask("GET", "/v1/models", kAskTimeout));
  ASSIGN_OR_RETURN(json::Document models, json::Document::parse(body, "GET /v1/models"));
  std::string_view id;
  if (models.root()["data"].at(0)["id"].get(id)) return not_found("GET /v1/models: the answer has no data[0].id");
  return std::string(id);
}

Result<json::Document> Target::server_info() const {
  ASSIGN_OR_RETURN(std::string body, ask("GET", "/get_server_info", kAskTimeout));
  return json::Document::parse(body, "GET /get_server_info");
}

Status Target::flush_cache() const {
  ASSIGN_OR_RETURN(std::string body, ask("POST", "/flush_cache", kFlushTimeout));
  return Ok{};
}

Result<std::string> Target::get(std::string_view path) const { return ask("GET", path, kAskTimeout); }

Result<std::string> Target::post(std::string_view path, std::string body, Duration timeout) const {
  return ask("POST", path, timeout, std::move(body));
}

std::optional<double> internal_state_number(Element info, std::string_view key) {
  double value = 0;
  if (!info["internal_states"].at(0)[key].get(value)) return value;
  if (!info["decode"].at(0)["internal_states"].at(0)[key].get(value)) return value;
  return std::nullopt;
}

Result<std::shared_ptr<const text::Tokenizer>> load_tokenizer(const std::string& path) {
  const std::filesystem::path file(path);
  std::error_code error;
  return text::Tokenizer::load(std::filesystem::is_directory(file, error) ? (file / "tokenizer.json").string() : path);
}

Result<std::string> find_tokenizer(const std::string& given, const std::string& model, const Target& target) {
  if (!given.empty()) return given;
  if (has_tokenizer(model)) return model;
  std::string tried = model.empty() ? "no model is named" : fmt::format("model {} is not a directory here", model);
  auto info = target.server_info();
  if (!info) return invalid_input(fmt::format("--tokenizer is not given; {}; {}", tried, info.error().message));
  const std::optional<std::string> named = named_tokenizer(info->root());
  if (named && has_tokenizer(*named)) return *named;
  return invalid_input(fmt::format("--tokenizer is not given; {}; the server's tokenizer_path {} has no tokenizer here",
                                   tried, named ? *named : "(none)"));
}

}  // namespace tandem::loadgen
