#include "server/server.h"

#include "api/error.h"
#include "base/json.h"
#include "server/core/core.h"
#include "server/core/routes.h"

namespace tandem::server {

struct Server::Impl {
  std::shared_ptr<Core> core;
};

namespace {

Status validate(const ServerConfig& config, const ServerParts& parts) {
  CHECK(parts.loop && parts.clock);
  if (config.context_length < 1) return invalid_input("server: context_length must be at least 1");
  if (config.vocab_size < 1) return invalid_input("server: vocab_size must be at least 1");
  if (config.stream_interval < 1) return invalid_input("server: stream_interval must be at least 1");
  if (!parts.tokenizer && !config.skip_tokenizer_init) {
    return invalid_input("server: there is no tokenizer, and skip_tokenizer_init is off");
  }
  ASSIGN_OR_RETURN(json::Document args, json::Document::parse(config.server_args_json, "server_args_json"));
  if (!args.root().is_object()) return invalid_input("server: server_args_json must be an object");
  return Ok{};
}

}  // namespace

Server::Server() : impl_(std::make_shared<Impl>()) {}
Server::~Server() { impl_->core->close(); }

Result<std::unique_ptr<Server>> Server::create(ServerConfig config, ServerParts parts) {
  RETURN_IF_ERROR(validate(config, parts));
  if (config.tokenizer_path.empty()) config.tokenizer_path = config.model_path;
  if (config.served_model_name.empty()) config.served_model_name = config.model_path;
  if (config.max_req_input_len <= 0) config.max_req_input_len = std::max(config.context_length - 6, 1);
  std::unique_ptr<Server> server(new Server());
  server->impl_->core = std::make_shared<Core>(std::move(config), std::move(parts));
  return server;
}

net::HttpHandler Server::handler() {
  return [weak = std::weak_ptr<Core>(impl_->core)](net::HttpRequest request, Writer writer) {
    if (auto core = weak.lock()) {
      dispatch(*core, std::move(request), std::move(writer));
    } else {
      writer->send(error_response(503, "The server is shutting down."));
    }
  };
}

net::HttpResponse Server::error_response(int status, std::string message) {
  net::HttpResponse response;
  response.status = status;
  response.body = status < 500 ? api::native_error_body(message) : api::abort_error_body(message, status);
  return response;
}

std::function<void(api::EngineEvent)> Server::engine_sink() {
  return [inbox = impl_->core->shared_inbox()](api::EngineEvent event) { inbox->push(std::move(event)); };
}

void Server::start(engine::EngineDoor& engine, engine::ExpertBalancer* experts) {
  impl_->core->port().attach(engine, experts);
}
void Server::drain() { impl_->core->drain(); }
void Server::abort_all(const std::string& message) { impl_->core->fail_all(message); }
size_t Server::active_requests() const { return impl_->core->active(); }

}  // namespace tandem::server
