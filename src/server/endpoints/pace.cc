// /slow_down, /hold_admission: what the steps of all ranks wait for. Answered when every rank's queue has the order, so
// it comes before whatever is sent from then on; neither waits for a sleep under way.
#include <fmt/format.h>

#include "api/control.h"
#include "api/error.h"
#include "base/json.h"
#include "server/endpoints/endpoints.h"

namespace tandem::server {
namespace {

void send(const Writer& writer, int status, std::string body) {
  net::HttpResponse response;
  response.status = status;
  response.body = std::move(body);
  writer->send(std::move(response));
}

void refuse(const Writer& writer, const std::string& why) { send(writer, 400, api::validation_error_body(why)); }

void give(Core& core, engine::Command command, std::string answer, const Writer& writer) {
  if (!core.port().engine() || core.draining()) {
    const char* why = core.draining() ? "The server is shutting down." : "The server is starting.";
    return send(writer, 503, api::abort_error_body(why, 503));
  }
  const bool waits =
      core.port().order(std::move(command), [writer, answer = std::move(answer)] { send(writer, 200, answer); });
  if (!waits) send(writer, 503, api::abort_error_body("The request queue is full.", 503));
}

}  // namespace

void slow_down(Core& core, net::HttpRequest request, const Writer& writer) {
  const Result<api::SlowDownCall> call = api::parse_slow_down(request.body);
  if (!call) return refuse(writer, call.error().message);
  give(core, engine::SlowDownCommand{call->sleep_ms}, "null", writer);
}

void post_hold_admission(Core& core, net::HttpRequest request, const Writer& writer) {
  const Result<api::HoldCall> call = api::parse_hold(request.body);
  if (!call) return refuse(writer, call.error().message);
  const ServerConfig& config = core.config();
  if (config.role == engine::Role::kPrefill) return refuse(writer, "A prefill server has no decode steps to hold.");
  if (call->running_requests > config.max_running_requests) {
    return refuse(writer, fmt::format("running_requests: a rank runs at most {} requests, {} were asked for",
                                      config.max_running_requests, call->running_requests));
  }
  json::Object answer;
  const bool holds = call->running_requests > 0;
  answer["running_requests"] = holds ? json::Value(call->running_requests) : json::Value(nullptr);
  if (holds) answer["timeout_s"] = call->timeout_s;
  engine::HoldCommand command;
  command.version = core.port().next_hold_version();
  command.running_requests = call->running_requests;
  command.timeout = from_seconds(call->timeout_s);
  give(core, command, json::dump(answer), writer);
}

}  // namespace tandem::server
