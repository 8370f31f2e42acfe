// /flush_cache, /abort_request: orders to the engine.
#include "api/control.h"
#include "api/error.h"
#include "server/endpoints/endpoints.h"
#include "server/endpoints/pending_reply.h"

namespace tandem::server {
namespace {

constexpr const char* kFlushText =
    "Cache flushed.\nPlease check backend logs for more details. (When there are running or waiting requests, the "
    "operation will not be performed.)\n";

}  // namespace

void flush_cache(Core& core, net::HttpRequest, const Writer& writer) {
  auto pending = std::make_shared<PendingReply>();
  pending->writer = writer;
  bool asked = core.port().flush_cache(
      [pending](bool flushed) { pending->send(flushed ? 200 : 400, kFlushText, "text/plain; charset=utf-8"); });
  if (!asked) {
    return pending->send(503, api::abort_error_body("The request queue is full.", 503), "application/json");
  }
  arm(core, pending);
}

void post_abort_request(Core& core, net::HttpRequest request, const Writer& writer) {
  net::HttpResponse response;
  auto call = api::parse_abort(request.body);
  if (!call) {
    response.status = 400;
    response.body = api::validation_error_body(call.error().message);
    return writer->send(std::move(response));
  }
  if (call->abort_all) {
    core.abort("");
  } else if (!call->rid.empty()) {
    core.abort(call->rid);
  }
  writer->send(std::move(response));
}

}  // namespace tandem::server
