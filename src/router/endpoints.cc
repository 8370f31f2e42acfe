#include "router/endpoints.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "api/error.h"
#include "base/json.h"
#include "base/log.h"
#include "net/access.h"
#include "router/ask.h"
#include "router/metrics_merge.h"

namespace tandem::router {

namespace {

constexpr Duration kSlowQuestion = std::chrono::seconds(30);  // what may wait for a step of an engine

void send_error(const Writer& writer, int status, std::string_view message) {
  send_json(writer, status, api::native_error_body(message));
}

Role front_role(const Fleet& fleet) { return fleet.config.disaggregated ? Role::kPrefill : Role::kPlain; }

// A healthy one if there is any: a sick server may still know its model.
std::shared_ptr<Instance> first_of(const Fleet& fleet, Role role) {
  auto all = fleet.table.with_role(role);
  auto healthy = std::find_if(all.begin(), all.end(), [](const auto& instance) { return instance->healthy; });
  if (healthy != all.end()) return *healthy;
  return all.empty() ? nullptr : all.front();
}

void pass_reply(const Writer& writer, Reply reply) {
  if (!reply.failure.empty()) {
    return send_error(writer, 502, fmt::format("{}: {}", reply.instance->address.url, reply.failure));
  }
  writer->send({reply.status, std::move(reply.content_type), std::move(reply.body), {}});
}

// The request as it is to one prefill (or plain) server, its answer as it is.
void pass_to_front(Fleet& fleet, net::HttpRequest& request, const Writer& writer) {
  auto instance = first_of(fleet, front_role(fleet));
  if (!instance) {
    return send_error(writer, 503, fmt::format("No available servers: no {} server", to_string(front_role(fleet))));
  }
  Question question{request.method, request.target, nullptr, forwarded_headers(request), kSlowQuestion};
  if (request.method != "GET") question.body = std::make_shared<const std::string>(std::move(request.body));
  ask(fleet, instance, std::move(question), [writer](Reply reply) { pass_reply(writer, std::move(reply)); });
}

void health(Fleet& fleet, net::HttpRequest&, const Writer& writer) {
  if (fleet.ready()) return writer->send({200, "text/plain; charset=utf-8", "OK", {}});
  send_error(writer, 503, fleet.config.disaggregated ? "no healthy prefill-decode pair" : "no healthy server");
}

void liveness(Fleet&, net::HttpRequest&, const Writer& writer) {
  writer->send({200, "text/plain; charset=utf-8", "OK", {}});
}

void readiness(Fleet& fleet, net::HttpRequest&, const Writer& writer) {
  json::Object body;
  const bool ready = fleet.ready();
  body["status"] = ready ? "ready" : "not ready";
  body["healthy_workers"] = fleet.table.healthy_count(Role::kPrefill) + fleet.table.healthy_count(Role::kDecode) +
                            fleet.table.healthy_count(Role::kPlain);
  body["total_workers"] = fleet.table.all().size();
  body["prefill_count"] = fleet.table.healthy_count(Role::kPrefill);
  body["decode_count"] = fleet.table.healthy_count(Role::kDecode);
  if (!ready) body["reason"] = "no healthy instance of every needed role";
  send_json(writer, ready ? 200 : 503, json::dump(body));
}

// One selected pair produces a token each.
void health_generate(Fleet& fleet, net::HttpRequest& request, const Writer& writer) {
  const Pair pair = fleet.pick("", {});
  if (!pair.decode) return send_error(writer, 503, "no healthy instance of every needed role");
  std::vector<std::shared_ptr<Instance>> chosen = {pair.decode};
  if (pair.prefill) chosen.push_back(pair.prefill);
  Question question{"GET", "/health_generate", nullptr, forwarded_headers(request), kSlowQuestion};
  ask_all(fleet, chosen, std::move(question), [writer](std::vector<Reply> replies) {
    for (const Reply& reply : replies) {
      if (reply.ok()) continue;
      return send_error(writer, 503,
                        fmt::format("{}: {}", reply.instance->address.url,
                                    reply.failure.empty() ? fmt::format("HTTP {}", reply.status) : reply.failure));
    }
    writer->send({200, "text/plain; charset=utf-8", "", {}});
  });
}

void metrics(Fleet& fleet, net::HttpRequest&, const Writer& writer) {
  writer->send({200, "text/plain; version=0.0.4; charset=utf-8", fleet.metrics.registry.scrape(), {}});
}

void engine_metrics(Fleet& fleet, net::HttpRequest&, const Writer& writer) {
  ask_all(fleet, fleet.table.all(), {"GET", "/metrics", nullptr, {}, kSlowQuestion},
          [writer](std::vector<Reply> replies) {
            std::vector<std::pair<std::string, std::string_view>> pages;
            for (const Reply& reply : replies) {
              if (reply.ok()) pages.emplace_back(reply.instance->address.url, reply.body);
            }
            if (pages.empty()) return send_error(writer, 503, "no instance answered /metrics");
            writer->send({200, "text/plain; version=0.0.4; charset=utf-8", merge_metrics(pages), {}});
          });
}

void get_loads(Fleet& fleet, net::HttpRequest&, const Writer& writer) {
  ask_all(fleet, fleet.table.all(), {"GET", "/get_load", nullptr, {}, kSlowQuestion},
          [writer](std::vector<Reply> replies) {
            json::Array workers;
            for (const Reply& reply : replies) {
              int64_t load = -1;
              auto document = json::Document::parse(reply.body, "/get_load");
              simdjson::dom::array ranks;
              if (reply.ok() && document && !document->root().get_array().get(ranks)) {
                load = 0;
                for (auto rank : ranks) {
                  int64_t tokens = 0;
                  if (!rank["num_tokens"].get_int64().get(tokens)) load += tokens;
                }
              }
              workers.push_back(json::Object{{"worker", reply.instance->address.url}, {"load", load}});
            }
            send_json(writer, 200, json::dump(json::Object{{"workers", workers}}));
          });
}

// The shape of mini_lb, which benchmark clients read: decode's internal states, every server's own answer beside it.
void server_info(Fleet& fleet, net::HttpRequest& request, const Writer& writer) {
  if (!fleet.config.disaggregated) return pass_to_front(fleet, request, writer);
  ask_all(fleet, fleet.table.all(), {"GET", "/get_server_info", nullptr, forwarded_headers(request), kSlowQuestion},
          [writer](std::vector<Reply> replies) {
            std::string states, prefills, decodes;
            auto append = [](std::string& list, std::string_view item) {
              if (!list.empty()) list.push_back(',');
              list.append(item);
            };
            for (const Reply& reply : replies) {
              auto document = json::Document::parse(reply.body, "/get_server_info");
              if (!reply.ok() || !document) continue;
              const bool decode = reply.instance->address.role == Role::kDecode;
              append(decode ? decodes : prefills, simdjson::minify(document->root()));
              simdjson::dom::array list;
              if (!decode || document->root()["internal_states"].get_array().get(list)) continue;
              for (auto state : list) append(states, simdjson::minify(state));
            }
            if (states.empty()) states = R"({"last_gen_throughput":0.0,"avg_spec_accept_length":null})";
            send_json(
                writer, 200,
                fmt::format(R"({{"internal_states":[{}],"prefill":[{}],"decode":[{}]}})", states, prefills, decodes));
          });
}

void flush_cache(Fleet& fleet, net::HttpRequest& request, const Writer& writer) {
  ask_all(
      fleet, fleet.table.all(), {"POST", "/flush_cache", nullptr, forwarded_headers(request), kSlowQuestion},
      [writer](std::vector<Reply> replies) {
        json::Array failed;
        for (const Reply& reply : replies) {
          if (reply.ok()) continue;
          failed.push_back(json::Object{
              {"worker", reply.instance->address.url},
              {"error", reply.failure.empty() ? fmt::format("HTTP {}: {}", reply.status, reply.body) : reply.failure}});
        }
        json::Object body;
        body["status"] = failed.empty() ? "success" : "partial_success";
        body["message"] =
            fmt::format("cache flushed on {} of {} workers", replies.size() - failed.size(), replies.size());
        body["workers_flushed"] = replies.size() - failed.size();
        body["total_http_workers"] = replies.size();
        body["failed"] = failed;
        send_json(writer, failed.empty() ? 200 : 206, json::dump(body));
      });
}

// Every instance ends what it has under the id; those without it answer 200 as well.
void abort_request(Fleet& fleet, net::HttpRequest& request, const Writer& writer) {
  auto body = std::make_shared<const std::string>(std::move(request.body));
  ask_all(fleet, fleet.table.all(), {"POST", "/abort_request", body, forwarded_headers(request), kSlowQuestion},
          [writer](std::vector<Reply> replies) {
            for (Reply& reply : replies) {
              if (!reply.ok()) return pass_reply(writer, std::move(reply));
            }
            writer->send({200, "text/plain; charset=utf-8", "", {}});
          });
}

json::Object describe(const Fleet& fleet, const Instance& instance) {
  json::Object out;
  out["id"] = std::to_string(instance.id.value);
  out["url"] = instance.address.url;
  out["worker_type"] = to_string(instance.address.role);
  if (instance.address.bootstrap_port) {
    out["bootstrap_port"] = *instance.address.bootstrap_port;
  } else {
    out["bootstrap_port"] = nullptr;
  }
  out["is_healthy"] = instance.healthy;
  out["load"] = instance.in_flight;
  out["circuit_breaker"] = to_string(instance.breaker.state(fleet.clock.now()));
  return out;
}

void list_workers(Fleet& fleet, net::HttpRequest&, const Writer& writer) {
  json::Array workers;
  for (const auto& instance : fleet.table.all()) workers.push_back(describe(fleet, *instance));
  json::Object stats;
  stats["prefill_count"] = fleet.table.with_role(Role::kPrefill).size();
  stats["decode_count"] = fleet.table.with_role(Role::kDecode).size();
  stats["regular_count"] = fleet.table.with_role(Role::kPlain).size();
  send_json(writer, 200,
            json::dump(json::Object{{"workers", workers}, {"total", fleet.table.all().size()}, {"stats", stats}}));
}

Result<InstanceAddress> parse_registration(const Fleet& fleet, std::string_view body) {
  ASSIGN_OR_RETURN(auto document, json::Document::parse(body, "the body"));
  simdjson::dom::object object;
  if (document.root().get_object().get(object)) return invalid_input("the body is not an object");
  InstanceAddress address;
  std::string_view text;
  if (object["url"].get_string().get(text)) return invalid_input("'url', a string, is wanted");
  address.url = text;
  address.role = fleet.config.disaggregated ? Role::kPrefill : Role::kPlain;
  if (!object["worker_type"].get_string().get(text)) {
    ASSIGN_OR_RETURN(address.role, parse_role(text));
  } else if (fleet.config.disaggregated) {
    return invalid_input("'worker_type' is wanted: prefill or decode");
  }
  if (fleet.config.disaggregated == (address.role == Role::kPlain)) {
    return invalid_input(fmt::format("a {} server does not fit this router", to_string(address.role)));
  }
  simdjson::dom::element port;
  if (!object["bootstrap_port"].get(port) && !port.is_null()) {
    uint64_t number;
    if (port.get_uint64().get(number) || number == 0 || number > 65535) {
      return invalid_input("'bootstrap_port' must be a number from 1 to 65535");
    }
    address.bootstrap_port = static_cast<uint16_t>(number);
  }
  return address;
}

void add_worker(Fleet& fleet, net::HttpRequest& request, const Writer& writer) {
  auto address = parse_registration(fleet, request.body);
  if (!address) return send_error(writer, 400, address.error().message);
  auto instance = fleet.table.add(std::move(address).value(), fleet.clock.now());
  if (!instance) return send_error(writer, 400, instance.error().message);
  const Instance& added = **instance;
  log::info("instance={} role={} registered", added.address.url, to_string(added.address.role));
  json::Object body = describe(fleet, added);
  body["status"] = "accepted";
  body["message"] = "serves once it is healthy";
  send_json(writer, 202, json::dump(body));
}

void remove_worker(Fleet& fleet, net::HttpRequest& request, const Writer& writer) {
  const std::string url = request.path.substr(std::string_view("/workers/").size());
  auto instance = fleet.table.remove(url);
  if (!instance) return send_error(writer, 404, fmt::format("no instance {}", url));
  fleet.prefill_picker.forget(instance->id);
  fleet.decode_picker.forget(instance->id);
  fleet.metrics.set_health(*instance);
  fleet.update_health_gauges();
  log::info("instance={} role={} removed", instance->address.url, to_string(instance->address.role));
  send_json(writer, 202, json::dump(json::Object{{"status", "accepted"}, {"worker_id", instance->address.url}}));
}

struct Endpoint {
  std::string_view method, path;  // a path that ends with "/" stands for everything below it
  void (*serve)(Fleet&, net::HttpRequest&, const Writer&);
  net::Access access = net::Access::kNormal;
};

constexpr net::Access kControl = net::Access::kControl;
constexpr std::array kEndpoints = {
    Endpoint{"GET", "/health", health},
    Endpoint{"GET", "/liveness", liveness},
    Endpoint{"GET", "/readiness", readiness},
    Endpoint{"GET", "/health_generate", health_generate},
    Endpoint{"GET", "/metrics", metrics},
    Endpoint{"GET", "/engine_metrics", engine_metrics},
    Endpoint{"GET", "/get_loads", get_loads},
    Endpoint{"GET", "/get_server_info", server_info},
    Endpoint{"GET", "/server_info", server_info},
    Endpoint{"GET", "/get_model_info", pass_to_front},
    Endpoint{"GET", "/model_info", pass_to_front},
    Endpoint{"GET", "/v1/models", pass_to_front},
    Endpoint{"GET", "/v1/models/", pass_to_front},
    Endpoint{"POST", "/tokenize", pass_to_front},
    Endpoint{"POST", "/detokenize", pass_to_front},
    Endpoint{"POST", "/v1/tokenize", pass_to_front},
    Endpoint{"POST", "/v1/detokenize", pass_to_front},
    Endpoint{"GET", "/flush_cache", flush_cache, kControl},
    Endpoint{"POST", "/flush_cache", flush_cache, kControl},
    Endpoint{"POST", "/abort_request", abort_request, kControl},
    Endpoint{"GET", "/workers", list_workers},
    Endpoint{"GET", "/list_workers", list_workers},
    Endpoint{"POST", "/workers", add_worker, kControl},
    Endpoint{"DELETE", "/workers/", remove_worker, kControl},
};

bool matches(const Endpoint& endpoint, const net::HttpRequest& request) {
  return endpoint.path.ends_with('/') ? request.path.starts_with(endpoint.path) : request.path == endpoint.path;
}

std::string_view served_as(const net::HttpRequest& request) {
  return request.method == "HEAD" ? "GET" : std::string_view(request.method);
}

constexpr std::array<std::string_view, 3> kGeneration = {"/generate", "/v1/completions", "/v1/chat/completions"};

}  // namespace

void send_json(const Writer& writer, int status, std::string body) {
  writer->send({status, "application/json", std::move(body), {}});
}

net::Headers forwarded_headers(const net::HttpRequest& request) {
  net::Headers out;
  for (const char* name :
       {"content-type", "authorization", "x-request-id", "x-correlation-id", "traceparent", "tracestate"}) {
    if (const std::string* value = request.header(name)) out.emplace_back(name, *value);
  }
  return out;
}

bool authorized(const Fleet& fleet, const net::HttpRequest& request, const Writer& writer) {
  for (std::string_view open : {"/health", "/metrics", "/liveness", "/readiness"}) {
    if (request.path.starts_with(open)) return true;
  }
  net::Access access = net::Access::kNormal;
  for (const Endpoint& endpoint : kEndpoints) {
    if (matches(endpoint, request) && endpoint.method == served_as(request)) access = endpoint.access;
  }
  if (net::is_authorized({fleet.config.api_key, fleet.config.admin_api_key}, request, access)) return true;
  send_json(writer, 401, R"({"error":"Unauthorized"})");
  return false;
}

bool serve_endpoint(Fleet& fleet, net::HttpRequest& request, const Writer& writer) {
  const bool generation = std::find(kGeneration.begin(), kGeneration.end(), request.path) != kGeneration.end();
  if (generation && (request.method == "POST" || (request.method == "PUT" && request.path == "/generate")))
    return false;
  bool known = generation;
  for (const Endpoint& endpoint : kEndpoints) {
    if (!matches(endpoint, request)) continue;
    known = true;
    if (endpoint.method != served_as(request)) continue;
    endpoint.serve(fleet, request, writer);
    return true;
  }
  send_json(writer, known ? 405 : 404, api::detail_body(known ? "Method Not Allowed" : "Not Found"));
  return true;
}

}  // namespace tandem::router
