// Expert recording, rebalancing and placement. The balancer answers on its own thread; the answer is posted to the
// loop.
#include <fmt/format.h>

#include "api/control.h"
#include "api/error.h"
#include "base/json.h"
#include "server/endpoints/endpoints.h"
#include "server/endpoints/pending_reply.h"

namespace tandem::server {
namespace {

constexpr const char* kPlain = "text/plain; charset=utf-8";
constexpr const char* kJson = "application/json";

// The balancer, or null after a 400 that says why there is none.
engine::ExpertBalancer* find_balancer(Core& core, const Writer& writer) {
  if (core.port().experts() != nullptr) return core.port().experts();
  net::HttpResponse response;
  response.status = core.port().engine() ? 400 : 503;
  response.body = api::validation_error_body(
      core.port().engine() ? "This server has no expert placement: its model has no routed experts."
                           : "The server is starting.");
  writer->send(std::move(response));
  return nullptr;
}

void send_error(PendingReply& pending, const Error& error) {
  const int status = api::http_status(error.code);
  pending.send(status, api::abort_error_body(error.message, status), kJson);
}

// What the balancer calls with its result: answers on the loop's thread, with format(value) as the body.
template <class T, class Format>
std::function<void(Result<T>)> reply_with(Core& core, const Writer& writer, const char* content_type, Format format) {
  auto pending = std::make_shared<PendingReply>();
  pending->writer = writer;
  arm(core, pending);
  net::EventLoop& loop = core.loop();
  return [&loop, pending, content_type, format](Result<T> result) {
    loop.post([pending, content_type, format, result = std::move(result)] {
      if (!result) return send_error(*pending, result.error());
      pending->send(200, format(*result), content_type);
    });
  };
}

std::string rebalance_body(const engine::RebalanceReply& reply) {
  json::Object body;
  body["epoch"] = reply.epoch;
  body["layers"] = reply.layers;
  body["moves"] = reply.moves;
  body["balancedness"] = reply.before;
  body["planned_balancedness"] = reply.after;
  return json::dump(body);
}

json::Array map_of(const engine::BalancerView& view) {
  json::Array layers;
  for (int32_t layer = 0; layer < view.placement.num_layers; ++layer) {
    json::Array row;
    for (const int32_t expert : view.placement.layer(layer)) row.emplace_back(expert);
    layers.push_back(std::move(row));
  }
  return layers;
}

}  // namespace

void start_expert_recording(Core& core, net::HttpRequest, const Writer& writer) {
  if (engine::ExpertBalancer* balancer = find_balancer(core, writer)) {
    balancer->start_recording(reply_with<Ok>(
        core, writer, kPlain, [](const Ok&) { return std::string("Start recording expert distribution.\n"); }));
  }
}

void stop_expert_recording(Core& core, net::HttpRequest, const Writer& writer) {
  if (engine::ExpertBalancer* balancer = find_balancer(core, writer)) {
    balancer->stop_recording(reply_with<Ok>(
        core, writer, kPlain, [](const Ok&) { return std::string("Stop recording expert distribution.\n"); }));
  }
}

void dump_expert_recording(Core& core, net::HttpRequest, const Writer& writer) {
  if (engine::ExpertBalancer* balancer = find_balancer(core, writer)) {
    balancer->dump_recording(reply_with<std::string>(core, writer, kPlain, [](const std::string& path) {
      return fmt::format("Dump expert distribution record.\n{}\n", path);
    }));
  }
}

void post_rebalance(Core& core, net::HttpRequest request, const Writer& writer) {
  engine::ExpertBalancer* balancer = find_balancer(core, writer);
  if (balancer == nullptr) return;
  Result<api::RebalanceCall> call = api::parse_rebalance(request.body);
  if (!call) {
    net::HttpResponse response;
    response.status = 400;
    response.body = api::validation_error_body(call.error().message);
    return writer->send(std::move(response));
  }
  balancer->rebalance(std::move(call->algorithm), std::move(call->placement),
                      reply_with<engine::RebalanceReply>(core, writer, kJson, rebalance_body));
}

void get_expert_placement(Core& core, net::HttpRequest, const Writer& writer) {
  engine::ExpertBalancer* balancer = find_balancer(core, writer);
  if (balancer == nullptr) return;
  const engine::BalancerView view = balancer->view();
  json::Object body;
  body["epoch"] = view.epoch;
  body["version"] = view.version;
  body["in_progress"] = view.in_progress;
  body["layers_left"] = view.layers_left;
  body["plans"] = view.plans;
  body["skipped"] = view.skipped;
  body["failed"] = view.failed;
  body["last_error"] = view.last_error.empty() ? json::Value(nullptr) : json::Value(view.last_error);
  body["experts_moved"] = view.moves_done;
  body["bytes_moved"] = view.bytes_moved;
  body["balancedness"] = view.balancedness;
  body["planned_balancedness"] = view.planned_balancedness;
  body["last_planning_ms"] = view.last_planning_ms;
  body["is_recording"] = view.is_recording;
  body["physical_to_logical_map"] = map_of(view);
  net::HttpResponse response;
  response.body = json::dump(body);
  writer->send(std::move(response));
}

}  // namespace tandem::server
