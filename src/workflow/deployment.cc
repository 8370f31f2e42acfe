#include "workflow/deployment.h"

#include <fmt/format.h>

#include "loadgen/measure.h"
#include "net/http_client.h"

namespace tandem::workflow {
namespace {

constexpr Duration kSampleTimeout = std::chrono::seconds(5);

}  // namespace

Deployment::Deployment(std::string url, std::vector<Instance> instances, std::string authorization, const Clock& clock,
                       TimePoint zero)
    : url_(std::move(url)),
      instances_(std::move(instances)),
      authorization_(std::move(authorization)),
      clock_(clock),
      zero_(zero) {}

std::vector<Instance> Deployment::of_role(Role role) const {
  std::vector<Instance> found;
  for (const Instance& instance : instances_) {
    if (instance.role == role) found.push_back(instance);
  }
  return found;
}

Result<Sample> Deployment::sample() const {
  ASSIGN_OR_RETURN(std::string body, ask(url_, "GET", "/get_server_info", "", kSampleTimeout));
  ASSIGN_OR_RETURN(json::Document document, json::Document::parse(body, "GET /get_server_info"));
  return read_sample(document.root(), seconds_now());
}

Result<std::string> Deployment::ask(const std::string& origin, const char* method, std::string_view path,
                                    std::string body, Duration timeout) const {
  net::ClientRequest request;
  request.method = method;
  ASSIGN_OR_RETURN(request.url, net::parse_url(origin + std::string(path)));
  request.headers = {{"Content-Type", "application/json"}};
  if (!authorization_.empty()) request.headers.emplace_back("Authorization", authorization_);
  if (request.method == "POST") request.body = std::make_shared<const std::string>(std::move(body));
  request.keep_alive = false;
  Result<net::HttpResponse> response = net::fetch(std::move(request), timeout);
  if (!response) {
    return Error{response.error().code, fmt::format("{} {}{}: {}", method, origin, path, response.error().message)};
  }
  if (response->status != 200) {
    return peer_lost(fmt::format("{} {}{}: HTTP {}: {}", method, origin, path, response->status,
                                 loadgen::describe_error_body(response->body)));
  }
  return std::move(response->body);
}

Status Deployment::post(Role role, std::string_view path, const std::string& body, Duration timeout) const {
  for (const Instance& instance : of_role(role)) {
    RETURN_IF_ERROR(ask(instance.url, "POST", path, body, timeout));
  }
  return Ok{};
}

}  // namespace tandem::workflow
