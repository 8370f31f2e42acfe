// /v1/models, /get_model_info, /weight_version: what is served.
#include "api/error.h"
#include "base/json.h"
#include "server/endpoints/endpoints.h"

namespace tandem::server {
namespace {

json::Object model_card(const Core& core) {
  const ServerConfig& config = core.config();
  json::Object card;
  card["id"] = config.served_model_name;
  card["object"] = "model";
  card["created"] = static_cast<int64_t>(core.clock().unix_seconds());
  card["owned_by"] = "sglang";
  card["root"] = config.served_model_name;
  card["parent"] = nullptr;
  card["max_model_len"] = config.context_length;
  return card;
}

void send_json(const Writer& writer, const json::Value& value) {
  net::HttpResponse response;
  response.body = json::dump(value);
  writer->send(std::move(response));
}

}  // namespace

void get_models(Core& core, net::HttpRequest, const Writer& writer) {
  json::Object list;
  list["object"] = "list";
  list["data"] = json::Array{model_card(core)};
  send_json(writer, list);
}

void get_model(Core& core, net::HttpRequest request, const Writer& writer) {
  constexpr std::string_view kPrefix = "/v1/models/";
  std::string id = request.path.substr(kPrefix.size());
  if (id == core.config().served_model_name) return send_json(writer, model_card(core));
  net::HttpResponse response;
  response.status = 404;
  response.body = api::unknown_model_body(id);
  writer->send(std::move(response));
}

void get_model_info(Core& core, net::HttpRequest, const Writer& writer) {
  const ServerConfig& config = core.config();
  json::Object info;
  info["model_path"] = config.model_path;
  info["tokenizer_path"] = config.tokenizer_path;
  info["is_generation"] = true;
  info["preferred_sampling_params"] = nullptr;
  info["weight_version"] = "default";
  info["has_image_understanding"] = false;
  info["has_audio_understanding"] = false;
  info["model_type"] = config.model_type;
  info["architectures"] = json::Array{json::Value(config.architecture)};
  send_json(writer, info);
}

void get_weight_version(Core&, net::HttpRequest, const Writer& writer) {
  json::Object version;
  version["weight_version"] = "default";
  send_json(writer, version);
}

}  // namespace tandem::server
