#include "app/instances.h"

#include <fmt/format.h>

#include <memory>

#include "base/json.h"
#include "net/http_client.h"

namespace tandem::app {

Result<std::string> ask_instance(const std::string& method, const std::string& url, std::string_view path,
                                 const std::string& body, const InstanceAccess& access) {
  net::ClientRequest request;
  request.method = method;
  ASSIGN_OR_RETURN(request.url, net::parse_url(url));
  request.url.path = path;
  request.headers = {{"Content-Type", "application/json"}};
  if (!access.api_key.empty()) request.headers.emplace_back("Authorization", "Bearer " + access.api_key);
  if (!body.empty()) request.body = std::make_shared<const std::string>(body);
  ASSIGN_OR_RETURN(net::HttpResponse response, net::fetch(std::move(request), access.timeout));
  if (response.status == 200) return std::move(response.body);
  return invalid_input(fmt::format("HTTP {}: {}", response.status, response.body));
}

Result<std::vector<std::string>> decode_instances(const std::string& router_url, const InstanceAccess& access) {
  ASSIGN_OR_RETURN(const std::string body, ask_instance("GET", router_url, "/workers", "", access));
  ASSIGN_OR_RETURN(const json::Document document, json::Document::parse(body, router_url + "/workers"));
  simdjson::dom::array workers;
  if (document.root()["workers"].get(workers) != simdjson::SUCCESS) {
    return invalid_input(router_url + "/workers: has no list of workers");
  }
  std::vector<std::string> decode, plain;
  for (const auto worker : workers) {
    std::string_view url, type;
    if (worker["url"].get(url) != simdjson::SUCCESS || worker["worker_type"].get(type) != simdjson::SUCCESS) continue;
    if (type == "decode") decode.emplace_back(url);
    if (type != "decode" && type != "prefill") plain.emplace_back(url);
  }
  if (decode.empty()) decode = std::move(plain);
  if (decode.empty()) return invalid_input(router_url + ": knows no decode server");
  return decode;
}

}  // namespace tandem::app
