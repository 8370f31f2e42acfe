// /get_server_info, /get_load, /metrics: what the server is and does now.
#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "api/error.h"
#include "api/json_text.h"
#include "base/json.h"
#include "server/endpoints/endpoints.h"

namespace tandem::server {
namespace {

// By data-parallel rank.
std::vector<engine::EngineSnapshot> snapshots_of(Core& core) {
  if (!core.port().engine()) return {engine::EngineSnapshot()};
  return core.port().engine()->snapshots();
}

double two_decimals(double value) { return std::round(value * 100) / 100; }

json::Object state_of(const ServerConfig& config, const engine::EngineSnapshot& snapshot) {
  json::Object state;
  state["last_gen_throughput"] = snapshot.last_gen_throughput;
  json::Object memory;
  memory["weight"] = two_decimals(config.weight_gb);
  memory["kvcache"] = two_decimals(config.kvcache_gb);
  memory["token_capacity"] = config.max_total_num_tokens;
  memory["graph"] = two_decimals(config.graph_gb);
  state["memory_usage"] = std::move(memory);
  state["running"] = snapshot.running;
  state["queued"] = snapshot.queued;
  state["prealloc"] = snapshot.prealloc;
  state["free_blocks"] = snapshot.free_blocks;
  state["leased_blocks"] = snapshot.leased_blocks;
  state["cached_blocks"] = snapshot.cached_blocks;
  state["total_blocks"] = snapshot.total_blocks;
  state["used_tokens"] = snapshot.used_tokens;
  state["total_tokens"] = snapshot.total_tokens;
  state["forward_steps"] = snapshot.forward_steps;
  state["retractions"] = snapshot.retractions;
  state["failed_transfers"] = snapshot.failed_transfers;
  state["profiling"] = snapshot.profiling;
  state["prompt_tokens_computed"] = snapshot.prompt_tokens_computed;
  state["decode_steps"] = snapshot.decode_steps;
  state["prefill_steps"] = snapshot.prefill_steps;
  state["generated_tokens"] = snapshot.generated_tokens;
  state["decode_step_us"] = snapshot.decode_step_us;
  state["prefill_step_us"] = snapshot.prefill_step_us;
  state["handovers"] = snapshot.handovers;
  state["handover_bytes"] = snapshot.handover_bytes;
  const bool slowed = snapshot.sleep_ms > 0, held = snapshot.held_for > 0;
  state["forward_sleep_time"] = slowed ? json::Value(double(snapshot.sleep_ms) / 1e3) : json::Value(nullptr);
  state["is_sleeping"] = snapshot.asleep;
  state["held_for_requests"] = held ? json::Value(snapshot.held_for) : json::Value(nullptr);
  return state;
}

// The members of a JSON object's text, followed by those of another; both with braces.
std::string merged(std::string_view object, const json::Object& more) {
  std::string out(object.substr(0, object.find_last_of('}')));
  std::string tail = json::dump(more);
  bool empty = out.find('"') == std::string::npos;
  if (!empty) out += ',';
  return out.append(tail, 1);
}

}  // namespace

void get_server_info(Core& core, net::HttpRequest, const Writer& writer) {
  const ServerConfig& config = core.config();
  json::Object info;
  info["status"] = core.ready() ? "ready" : core.draining() ? "draining" : "starting";
  info["max_total_num_tokens"] = config.max_total_num_tokens;
  info["max_req_input_len"] = config.max_req_input_len;
  info["version"] = config.version;
  std::string body = merged(config.server_args_json, info);
  body.pop_back();
  body += ",\"internal_states\":[";
  std::string separator;
  for (const engine::EngineSnapshot& snapshot : snapshots_of(core)) {
    body += std::exchange(separator, ",");
    body += merged(config.server_args_json, state_of(config, snapshot));
  }
  body += "]}";
  net::HttpResponse response;
  response.body = std::move(body);
  writer->send(std::move(response));
}

void get_load(Core& core, net::HttpRequest, const Writer& writer) {
  net::HttpResponse response;
  std::string separator;
  int32_t rank = 0;
  for (const engine::EngineSnapshot& snapshot : snapshots_of(core)) {
    response.body += std::exchange(separator, ",");
    response.body += fmt::format(
        R"({{"rid":null,"http_worker_ipc":null,"dp_rank":{},"num_reqs":{},"num_waiting_reqs":{},"num_tokens":{}}})",
        rank++, snapshot.running + snapshot.queued, snapshot.queued, snapshot.used_tokens + snapshot.waiting_tokens);
  }
  response.body = "[" + response.body + "]";
  writer->send(std::move(response));
}

void get_metrics(Core& core, net::HttpRequest, const Writer& writer) {
  net::HttpResponse response;
  if (!core.config().enable_metrics || !core.parts().metrics) {
    response.status = 404;
    response.body = api::detail_body("Not Found");
  } else {
    response.content_type = "text/plain; version=0.0.4; charset=utf-8";
    response.body = core.parts().metrics->scrape();
  }
  writer->send(std::move(response));
}

}  // namespace tandem::server
