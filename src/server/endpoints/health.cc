// /health, /health_generate, /ping. /health is cheap and true: it asks whether the engine made a step or came round its
// idle loop within the deadline; /health_generate makes the engine generate a token.
#include "server/endpoints/endpoints.h"

namespace tandem::server {
namespace {

void send_status(const Writer& writer, int status) {
  net::HttpResponse response;
  response.status = status;
  writer->send(std::move(response));
}

}  // namespace

void get_health(Core& core, net::HttpRequest, const Writer& writer) {
  if (!core.ready()) return send_status(writer, 503);
  engine::EngineSnapshot snapshot = core.port().engine()->snapshot();
  bool has_run = snapshot.last_progress != TimePoint{};
  bool progresses = has_run && core.clock().now() - snapshot.last_progress <= core.config().health_timeout;
  send_status(writer, progresses && !snapshot.draining ? 200 : 503);
}

void get_health_generate(Core& core, net::HttpRequest, const Writer& writer) {
  core.probe([writer](bool alive) { send_status(writer, alive ? 200 : 503); });
}

void get_ping(Core&, net::HttpRequest, const Writer& writer) { send_status(writer, 200); }

}  // namespace tandem::server
