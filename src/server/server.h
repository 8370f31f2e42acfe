// Server: the HTTP face of one engine. Parses requests, makes tokens, submits sequences, turns events into answers.
//
//   net::HttpServer --handler()--> routes -> endpoints -> [intake thread: large bodies, tokenizing] -> Engine::submit
//   Engine --engine_sink()--> [inbox] --posted to the loop--> sequences -> text -> answers -> ResponseWriter
//
// Thread: the loop's, but where noted. Every request that came in is answered or hung up exactly once, and gives back
// all its bookkeeping then; active_requests() counts what is left.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/openai.h"
#include "base/clock.h"
#include "base/result.h"
#include "engine/engine.h"
#include "engine/expert_balancer.h"
#include "net/event_loop.h"
#include "net/http_server.h"
#include "profile/metrics.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace tandem::profile {
class FlightRecorder;
}  // namespace tandem::profile

namespace tandem::server {

struct ServerConfig {
  engine::Role role = engine::Role::kCombined;
  std::string model_path;
  std::string tokenizer_path;            // empty: model_path
  std::string served_model_name;         // empty: model_path
  std::string model_type, architecture;  // of config.json
  std::string version = "0.1.0";
  std::string api_key;            // empty: everybody may
  std::string admin_api_key;      // of what changes the server; empty: as the others, see net/access.h
  int32_t context_length = 0;     // tokens, prompt and answer together
  int32_t max_req_input_len = 0;  // 0: context_length - 6
  int32_t vocab_size = 0;         // of the model: ids beyond it are refused
  std::vector<int32_t> eos_token_ids;
  int32_t stream_interval = 1;          // tokens from one event to the next
  bool stream_output = false;           // events carry only their new output_ids
  api::SamplingDefaults chat_defaults;  // generation_config.json; empty with --sampling-defaults openai
  bool allow_auto_truncate = false;
  bool enable_metrics = false;
  bool enable_cache_report = false;
  bool log_requests = false;       // two lines per sequence, see core/request_log.h
  int32_t log_requests_level = 2;  // 0 to 3
  bool skip_tokenizer_init = false;
  Duration health_timeout = std::chrono::seconds(20);    // without progress of the engine
  Duration control_timeout = std::chrono::seconds(600);  // /flush_cache: until the engine has answered
  std::string profile_directory = "/tmp";                // /start_profile without output_dir
  std::string home_directory;                            // what "~" in an output_dir stands for; empty: not expanded
  std::string server_args_json = "{}";                   // an object: all resolved arguments, for /get_server_info
  int64_t max_total_num_tokens = 0;                      // of a rank
  int32_t num_ranks = 1;                                 // data-parallel ones
  int32_t max_running_requests = 0;                      // of a rank; 0: nobody asks for it
  double weight_gb = 0, kvcache_gb = 0, graph_gb = 0;
  uint64_t seed = 0;  // for drawn request ids and sampling seeds
};

// Borrowed where pointers; they outlive the server.
struct ServerParts {
  net::EventLoop* loop = nullptr;
  const Clock* clock = nullptr;
  profile::Metrics* metrics = nullptr;                 // null: no /metrics
  std::shared_ptr<const text::Tokenizer> tokenizer;    // null only with skip_tokenizer_init
  std::optional<text::ChatTemplate> chat_template;     // absent: chat is refused
  std::vector<const profile::FlightRecorder*> flight;  // of this process's ranks; empty: no /flight_recorder
};

// Wiring: create(); Engine::create(..., server->engine_sink()); server->start(*engine, experts);
// HttpServer::listen(..., server->handler()). Until start() every request but the plain information is answered 503. At
// the end: drain(), wait for active_requests() == 0 (or abort_all() at the deadline), stop the engine, stop the loop,
// destroy the server.
class Server {
 public:
  static Result<std::unique_ptr<Server>> create(ServerConfig config, ServerParts parts);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Valid as long as the server.
  net::HttpHandler handler();
  // For HttpServerOptions::error_response.
  static net::HttpResponse error_response(int status, std::string message);

  // Called on the engine's thread; outlives the server. Enqueues; waits only while 2^18 events are unread.
  std::function<void(api::EngineEvent)> engine_sink();
  // Before the loop runs, or on its thread. Both outlive the server's last request. experts null: one rank, or no
  // experts.
  void start(engine::EngineDoor& engine, engine::ExpertBalancer* experts);

  // Takes nothing new (503), /health turns 503, what runs goes on.
  void drain();
  // Ends every open request with an abort of this message.
  void abort_all(const std::string& message);
  // Open generation requests, those still being tokenized included. Any thread.
  size_t active_requests() const;

 private:
  Server();
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace tandem::server
