// /start_profile, /stop_profile: orders to all ranks. A start is answered when every rank has taken it over, a stop
// when every rank's file is written.
#include <fmt/format.h>

#include "api/error.h"
#include "api/profile.h"
#include "server/endpoints/endpoints.h"
#include "server/endpoints/pending_reply.h"

namespace tandem::server {
namespace {

std::string expanded(const std::string& path, const std::string& home) {
  const bool is_home = path == "~" || path.starts_with("~/");
  return is_home && !home.empty() ? home + path.substr(1) : path;
}

void order(Core& core, const Writer& writer, engine::ProfileCommand command, const char* success) {
  auto pending = std::make_shared<PendingReply>();
  pending->writer = writer;
  const bool asked = core.port().profile(std::move(command), [pending, success](const Status& status) {
    if (status) return pending->send(200, success, "text/plain; charset=utf-8");
    const int code = api::http_status(status.error().code);
    pending->send(code,
                  code == 400 ? api::validation_error_body(status.error().message)
                              : api::abort_error_body(status.error().message, code),
                  "application/json");
  });
  if (!asked) {
    const char* reason = core.port().engine() ? "The request queue is full." : "The server is starting.";
    return pending->send(503, api::abort_error_body(reason, 503), "application/json");
  }
  arm(core, pending);
}

}  // namespace

void start_profile(Core& core, net::HttpRequest request, const Writer& writer) {
  Result<api::ProfileCall> call = api::parse_start_profile(request.body);
  if (!call) {
    net::HttpResponse response;
    response.status = 400;
    response.body = api::validation_error_body(call.error().message);
    return writer->send(std::move(response));
  }
  engine::ProfileCommand command;
  command.kind = engine::ProfileCommand::Kind::kStart;
  command.call = std::move(*call);
  if (command.call.output_dir.empty()) command.call.output_dir = core.config().profile_directory;
  command.call.output_dir = expanded(command.call.output_dir, core.config().home_directory);
  // As SGLang's: the shortest text of the time that reads back as the same number.
  command.call.profile_id = fmt::format("{}", core.clock().unix_seconds());
  order(core, writer, std::move(command), "Start profiling.\n");
}

void stop_profile(Core& core, net::HttpRequest, const Writer& writer) {
  engine::ProfileCommand command;
  command.kind = engine::ProfileCommand::Kind::kStop;
  order(core, writer, std::move(command), "Stop profiling. This will take some time.\n");
}

}  // namespace tandem::server
