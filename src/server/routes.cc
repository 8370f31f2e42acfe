// The table of all endpoints, and what happens before one of them is called.
#include "server/core/routes.h"

#include "api/error.h"
#include "net/access.h"
#include "server/core/cors.h"
#include "server/endpoints/endpoints.h"

namespace tandem::server {
namespace {

using net::Access;

enum Methods : unsigned { kGet = 1, kPost = 2, kPut = 4 };

struct Route {
  std::string_view path;
  unsigned methods;
  Endpoint endpoint;
  Access access = Access::kNormal;
  bool is_prefix = false;  // the path goes on
};

constexpr Route kRoutes[] = {
    {"/generate", kPost | kPut, post_generate},
    {"/v1/completions", kPost, post_completions},
    {"/v1/chat/completions", kPost, post_chat_completions},
    {"/invocations", kPost, post_chat_completions},
    {"/v1/models", kGet, get_models},
    {"/v1/models/", kGet, get_model, Access::kNormal, true},
    {"/tokenize", kPost, post_tokenize},
    {"/v1/tokenize", kPost, post_tokenize},
    {"/detokenize", kPost, post_detokenize},
    {"/v1/detokenize", kPost, post_detokenize},
    {"/health", kGet, get_health},
    {"/health_generate", kGet, get_health_generate},
    {"/ping", kGet, get_ping},
    {"/server_info", kGet, get_server_info},
    {"/get_server_info", kGet, get_server_info},
    {"/model_info", kGet, get_model_info},
    {"/get_model_info", kGet, get_model_info},
    {"/weight_version", kGet, get_weight_version},
    {"/get_load", kGet, get_load},
    {"/metrics", kGet, get_metrics},
    {"/flush_cache", kGet | kPost, flush_cache, Access::kControl},
    {"/abort_request", kPost, post_abort_request, Access::kControl},
    {"/slow_down", kGet | kPost, slow_down, Access::kControl},
    {"/hold_admission", kPost, post_hold_admission, Access::kControl},
    {"/start_profile", kGet | kPost, start_profile, Access::kControl},
    {"/stop_profile", kGet | kPost, stop_profile, Access::kControl},
    {"/start_expert_distribution_record", kGet | kPost, start_expert_recording, Access::kControl},
    {"/stop_expert_distribution_record", kGet | kPost, stop_expert_recording, Access::kControl},
    {"/dump_expert_distribution_record", kGet | kPost, dump_expert_recording, Access::kControl},
    {"/rebalance", kPost, post_rebalance, Access::kControl},
    {"/expert_placement", kGet, get_expert_placement},
    {"/flight_recorder", kGet, get_flight_recorder, Access::kControl},
};

const Route* find_route(std::string_view path) {
  for (const Route& route : kRoutes) {
    bool matches =
        route.is_prefix ? path.starts_with(route.path) && path.size() > route.path.size() : path == route.path;
    if (matches) return &route;
  }
  return nullptr;
}

unsigned method_bit(std::string_view method) {
  return method == "GET" ? kGet : method == "POST" ? kPost : method == "PUT" ? kPut : 0u;
}

std::string allowed(unsigned methods) {
  std::string out;
  for (auto [bit, name] : {std::pair(kGet, "GET"), std::pair(kPost, "POST"), std::pair(kPut, "PUT")}) {
    if (!(methods & bit)) continue;
    if (!out.empty()) out += ", ";
    out += name;
  }
  return out;
}

bool is_open(std::string_view path) { return path.starts_with("/health") || path.starts_with("/metrics"); }

bool is_json(const net::HttpRequest& request) {
  const std::string* type = request.header("content-type");
  if (!type) return false;
  std::string lower;
  for (char c : *type) lower += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  return lower.starts_with("application/json");
}

net::HttpResponse plain(int status, std::string body) {
  net::HttpResponse response;
  response.status = status;
  response.body = std::move(body);
  return response;
}

}  // namespace

void dispatch(Core& core, net::HttpRequest request, Writer writer) {
  writer = with_cors(request, std::move(writer));
  if (is_preflight(request)) return writer->send(preflight_response(request));
  const Route* route = find_route(request.path);
  const Access access = route ? route->access : Access::kNormal;
  const net::AccessKeys keys{core.config().api_key, core.config().admin_api_key};
  if (!is_open(request.path) && !net::is_authorized(keys, request, access)) {
    return writer->send(plain(401, R"({"error":"Unauthorized"})"));
  }
  if (!route) return writer->send(plain(404, api::detail_body("Not Found")));
  if (!(route->methods & method_bit(request.method))) {
    net::HttpResponse response = plain(405, api::detail_body("Method Not Allowed"));
    response.headers.emplace_back("Allow", allowed(route->methods));
    return writer->send(std::move(response));
  }
  if (route->methods == kPost && request.path.starts_with("/v1/") && !is_json(request)) {
    return writer->send(
        plain(400, api::validation_error_body("Unsupported Media Type: Only 'application/json' is allowed")));
  }
  route->endpoint(core, std::move(request), writer);
}

}  // namespace tandem::server
