#include "app/server_process.h"

#include <fmt/format.h>
#include <unistd.h>

#include <random>

#include "app/flight_files.h"
#include "app/follower_process.h"
#include "app/machine.h"
#include "app/memory_plan.h"
#include "app/node_ranks.h"
#include "app/nodes.h"
#include "app/resolve_gpu.h"
#include "app/signals.h"
#include "base/log.h"
#include "device/gpu.h"
#include "net/http_server.h"
#include "server/server.h"

namespace tandem::app {
namespace {

constexpr Duration kSignalPoll = std::chrono::milliseconds(50);
constexpr Duration kWarmupDeadline = std::chrono::seconds(600);
constexpr Duration kAbortGrace = std::chrono::milliseconds(500);  // for the answers of aborted requests to leave

uint64_t random_bits() {
  std::random_device device;
  return (uint64_t(device()) << 32) | device();
}

// Receives the answer to the warm-up request, which has no connection.
class WarmupWriter final : public net::ResponseWriter {
 public:
  explicit WarmupWriter(std::function<void(int status, std::string body)> done) : done_(std::move(done)) {}
  void send(net::HttpResponse response) override { done_(response.status, std::move(response.body)); }
  void begin(int status, std::string, net::Headers) override { status_ = status; }
  bool write(std::string bytes) override {
    body_ += bytes;
    return true;
  }
  void end() override { done_(status_, std::move(body_)); }
  void on_closed(std::function<void()>) override {}
  bool closed() const override { return false; }
  size_t backlog() const override { return 0; }

 private:
  const std::function<void(int, std::string)> done_;
  int status_ = 0;
  std::string body_;
};

class ProcessImpl final : public ServerProcess {
 public:
  explicit ProcessImpl(ResolvedConfig config) : config_(std::move(config)) {}

  Status build();
  int run() override;

 private:
  bool pd() const { return config_.engine.role != engine::Role::kCombined; }
  Status load_texts();
  Status build_server(const MemoryPlan& plan);
  Status listen();
  void warm_up();
  void warmed_up(int status, const std::string& body);
  void say_ready();
  void watch();  // the loop's timer: signals, watchdog, drain
  void end_lost(const std::string& reason);
  void begin_drain();
  void watch_drain();

  ResolvedConfig config_;
  const SystemClock clock_;
  profile::Metrics metrics_;
  int num_threads_ = 1;
  std::shared_ptr<const text::Tokenizer> tokenizer_;
  std::optional<text::ChatTemplate> chat_template_;
  model::GenerationDefaults generation_;
  std::unique_ptr<FlightFiles> flight_;
  net::EventLoop loop_;
  std::unique_ptr<server::Server> server_;
  std::unique_ptr<NodeRanks> ranks_;
  std::unique_ptr<net::HttpServer> http_;
  // The loop's thread.
  std::shared_ptr<net::EventLoop::Timer> timer_, warmup_timer_;
  bool ready_ = false, draining_ = false, aborted_ = false;
  TimePoint drain_deadline_{};
  int exit_status_ = 0;
};

Status ProcessImpl::build() {
  num_threads_ = config_.flags.has("num_threads") ? int(config_.flags.integer("num_threads")) : num_usable_cpus();
  int64_t free_bytes = available_memory_bytes();
  if (is_cuda(config_.backend)) {
    ASSIGN_OR_RETURN(const device::GpuInfo gpu, device::find_gpu(gpu_of(config_, 0)));
    free_bytes = gpu.free_bytes;
  }
  ASSIGN_OR_RETURN(MemoryPlan plan, plan_memory(config_, num_threads_, free_bytes));
  for (const std::string& line : plan.lines) log::info("{}", line);
  ASSIGN_OR_RETURN(const auto nodes, meet_nodes(config_, plan, clock_));
  settle_engine(config_, plan);
  ASSIGN_OR_RETURN(flight_, FlightFiles::create(config_, nodes ? nodes->token() : config_.engine.epoch, clock_));
  RETURN_IF_ERROR(load_texts());
  RETURN_IF_ERROR(build_server(plan));
  ASSIGN_OR_RETURN(ranks_, NodeRanks::create(config_, plan, {&clock_, &metrics_, num_threads_, nodes, flight_.get()},
                                             server_->engine_sink()));
  server_->start(ranks_->door(), ranks_->experts());
  return listen();
}

Status ProcessImpl::load_texts() {
  ASSIGN_OR_RETURN(generation_, model::load_generation_defaults(config_.model_directory));
  if (config_.flags.enabled("skip_tokenizer_init")) return Ok{};
  ASSIGN_OR_RETURN(tokenizer_, text::Tokenizer::load(config_.tokenizer_directory + "/tokenizer.json"));
  if (tokenizer_->vocab_size() > config_.model.vocab_size) {
    return invalid_input(fmt::format("{}/tokenizer.json has {} ids, the model's vocabulary {}",
                                     config_.tokenizer_directory, tokenizer_->vocab_size(), config_.model.vocab_size));
  }
  Result<text::ChatTemplate> chat = text::ChatTemplate::load(config_.tokenizer_directory);
  if (chat) {
    chat_template_ = std::move(*chat);
  } else if (chat.error().code == ErrorCode::kNotFound) {
    log::warning("{}: chat requests are refused", chat.error().message);
  } else {
    return chat.error();
  }
  return Ok{};
}

Status ProcessImpl::build_server(const MemoryPlan& plan) {
  const FlagValues& flags = config_.flags;
  server::ServerConfig server;
  server.role = config_.engine.role;
  server.model_path = config_.model_directory;
  server.tokenizer_path = config_.tokenizer_directory;
  server.served_model_name = config_.served_model_name;
  server.model_type = config_.model.model_type;
  server.architecture = config_.model.architecture;
  server.version = TANDEM_VERSION;
  if (flags.has("api_key")) server.api_key = flags.text("api_key");
  if (flags.has("admin_api_key")) server.admin_api_key = flags.text("admin_api_key");
  server.context_length = config_.engine.context_length;
  // Bounds of one request on one rank: SGLang's max_req_len and max_req_input_len.
  server.max_req_input_len = std::min(config_.engine.context_length, plan.max_total_tokens) - 1 - 5;
  server.vocab_size = config_.model.vocab_size;
  server.eos_token_ids = generation_.eos_token_ids.empty() ? config_.model.eos_token_ids : generation_.eos_token_ids;
  server.stream_interval = int32_t(flags.integer("stream_interval"));
  server.stream_output = flags.enabled("stream_output");
  if (flags.text("sampling_defaults") == "model") {
    server.chat_defaults.temperature = generation_.temperature;
    server.chat_defaults.top_p = generation_.top_p;
    server.chat_defaults.min_p = generation_.min_p;
    server.chat_defaults.repetition_penalty = generation_.repetition_penalty;
    server.chat_defaults.top_k = generation_.top_k;
  }
  server.allow_auto_truncate = flags.enabled("allow_auto_truncate");
  server.enable_metrics = flags.enabled("enable_metrics");
  server.log_requests = flags.enabled("log_requests");
  server.log_requests_level = int32_t(flags.integer("log_requests_level"));
  server.enable_cache_report = flags.enabled("enable_cache_report");
  server.skip_tokenizer_init = flags.enabled("skip_tokenizer_init");
  server.health_timeout = from_seconds(config_.environment.health_check_timeout_s);
  server.profile_directory = config_.environment.profile_directory;
  server.home_directory = config_.environment.home_directory;
  server.server_args_json = json::dump(describe(config_));
  server.max_total_num_tokens = plan.max_total_tokens;
  server.num_ranks = config_.dp_size;
  server.max_running_requests = plan.max_running_requests;
  server.weight_gb = double(plan.weight_bytes + plan.expert_bytes * config_.num_ranks) / 1e9;
  server.kvcache_gb = double(plan.kv_bytes) / 1e9;
  server.seed = config_.engine.seed;
  server::ServerParts parts;
  parts.loop = &loop_;
  parts.clock = &clock_;
  parts.metrics = &metrics_;
  parts.tokenizer = tokenizer_;
  parts.chat_template = chat_template_;
  parts.flight = flight_->all();
  ASSIGN_OR_RETURN(server_, server::Server::create(std::move(server), std::move(parts)));
  return Ok{};
}

Status ProcessImpl::listen() {
  net::HttpServerOptions options;
  options.host = config_.flags.text("host");
  options.port = uint16_t(config_.flags.integer("port"));
  options.error_response = server::Server::error_response;
  const char* level_field = config_.flags.has("log_level_http") ? "log_level_http" : "log_level";
  const std::string level = config_.flags.text(level_field);
  if (level == "debug" || level == "info") {
    options.access_log = [](const net::HttpRequest& request, int status) {
      log::info("INFO:     {} - \"{} {} HTTP/1.1\" {}", request.remote, request.method, request.path, status);
    };
  }
  // Not ready before the warm-up request has been through the engine.
  net::HttpHandler inner = server_->handler();
  net::HttpHandler handler = [this, inner](net::HttpRequest request, std::shared_ptr<net::ResponseWriter> writer) {
    if (!ready_ && (request.path == "/health" || request.path == "/health_generate")) {
      net::HttpResponse starting;
      starting.status = 503;
      return writer->send(std::move(starting));
    }
    inner(std::move(request), std::move(writer));
  };
  ASSIGN_OR_RETURN(http_, net::HttpServer::listen(loop_, std::move(options), std::move(handler)));
  return Ok{};
}

// As SGLang's: one prompt of token ids per rank, eight greedy tokens; with prefill and decode apart over the fake
// transfer.
void ProcessImpl::warm_up() {
  if (config_.flags.enabled("skip_server_warmup")) return say_ready();
  if (pd()) log::info("Start of pd disaggregation warmup ...");
  net::HttpRequest request;
  request.method = "POST";
  request.target = request.path = "/generate";
  request.remote = "warm-up";
  request.headers = {{"Content-Type", "application/json"}};
  if (config_.flags.has("api_key")) {
    request.headers.emplace_back("Authorization", "Bearer " + config_.flags.text("api_key"));
  }
  std::string prompts, hosts, rooms;
  for (int32_t rank = 0; rank < config_.dp_size; ++rank) {
    const char* comma = rank > 0 ? ", " : "";
    prompts += fmt::format("{}[0, 1, 2, 3]", comma);
    hosts += fmt::format("{}\"2.2.2.2\"", comma);
    rooms += fmt::format("{}{}", comma, rank);
  }
  std::string body = fmt::format(
      R"({{"input_ids": [{}], "sampling_params": {{"temperature": 0, "max_new_tokens": 8, "ignore_eos": true}})",
      prompts);
  if (pd()) body += fmt::format(R"(, "bootstrap_host": [{}], "bootstrap_room": [{}])", hosts, rooms);
  body += "}";
  request.body.reserve(body.size() + 64);
  request.body += body;
  warmup_timer_ = loop_.after(kWarmupDeadline, [this] { warmed_up(503, "no answer"); });
  auto answered = [this](int status, std::string text) {
    loop_.post([this, status, text = std::move(text)] { warmed_up(status, text); });
  };
  server_->handler()(std::move(request), std::make_shared<WarmupWriter>(answered));
}

void ProcessImpl::warmed_up(int status, const std::string& body) {
  if (draining_ || ready_) return;
  warmup_timer_.reset();
  if (status != 200) {
    log::error("the warm-up request got status {}: {}", status, body);
    exit_status_ = 1;
    return loop_.stop();
  }
  if (pd()) {
    log::info("End of {} disaggregation mode warmup with status {}, resp: {}",
              config_.flags.text("disaggregation_mode"), status, body);
  }
  say_ready();
}

void ProcessImpl::say_ready() {
  ready_ = true;
  log::info("The server is fired up and ready to roll!");
}

void ProcessImpl::watch() {
  if (const std::optional<std::string> lost = ranks_->lost(); lost && exit_status_ == 0) end_lost(*lost);
  if ((signals_seen() > 0 || ranks_->wants_stop()) && !draining_) begin_drain();
  if (draining_) watch_drain();
  const double limit = config_.flags.number("watchdog_timeout");
  if (seconds(clock_.now() - ranks_->door().snapshot().last_progress) > limit) {
    log::error("Watchdog timeout (self.watchdog_timeout={}): the engine made no progress", limit);
    flight_->explain_fault(flight_patience(limit));
    _exit(1);  // the engine thread is stuck, so there is nobody to join
  }
  timer_ = loop_.after(kSignalPoll, [this] { watch(); });
}

// A rank or node is gone for good: what runs gets its error, then the process ends and says why.
void ProcessImpl::end_lost(const std::string& reason) {
  log::error("{}; the server ends", reason);
  flight_->explain_fault(flight_patience(config_.flags.number("watchdog_timeout")));
  exit_status_ = 1;
  ready_ = false;  // /health is red at once
  if (!draining_) begin_drain();
}

void ProcessImpl::begin_drain() {
  log::info("draining: {} requests are running", server_->active_requests());
  draining_ = true;
  drain_deadline_ = clock_.now() + from_seconds(config_.flags.number("drain_timeout"));
  server_->drain();  // health turns red and new requests get 503, which both want the port to be open
  ranks_->door().submit(engine::DrainCommand{});
}

void ProcessImpl::watch_drain() {
  const bool hurried = signals_seen() > 1 || clock_.now() > drain_deadline_;
  if (server_->active_requests() == 0) {
    http_->drain();  // the last bytes of the last answer leave before their connections close
    if (http_->open_connections() == 0 || hurried) return loop_.stop();
  }
  if (hurried && !aborted_) {
    aborted_ = true;
    log::warning("{} requests are aborted", server_->active_requests());
    server_->abort_all("The server is shutting down.");
    drain_deadline_ = clock_.now() + kAbortGrace;
  } else if (hurried && clock_.now() > drain_deadline_) {
    loop_.stop();
  }
}

int ProcessImpl::run() {
  const engine::EngineConfig& engine = config_.engine;
  log::info(
      "max_total_num_tokens={}, chunked_prefill_size={}, max_prefill_tokens={}, max_running_requests={}, "
      "context_len={}, available_gpu_mem={:.2f} GB",
      engine.max_total_tokens, engine.chunked_prefill_size > 0 ? engine.chunked_prefill_size : -1,
      engine.max_prefill_tokens, engine.max_running_requests, engine.context_length,
      double(available_memory_bytes()) / 1e9);
  ranks_->start();
  loop_.post([this] {
    watch();
    warm_up();
  });
  loop_.run();
  log::info("stopped");
  return exit_status_;
}

}  // namespace

void settle_engine(ResolvedConfig& config, const MemoryPlan& plan) {
  config.engine.max_total_tokens = plan.max_total_tokens;
  config.engine.max_running_requests = plan.max_running_requests;
  config.engine.epoch = random_bits();
  config.engine.seed = config.flags.has("random_seed") ? uint64_t(config.flags.integer("random_seed")) : random_bits();
  config.engine.log_forward_iters = config.environment.log_forward_iters;
  config.engine.model_name = config.served_model_name;
}

Result<std::unique_ptr<ServerProcess>> ServerProcess::start(ResolvedConfig config) {
  if (config.node_rank > 0) return start_follower(std::move(config));
  auto process = std::make_unique<ProcessImpl>(std::move(config));
  RETURN_IF_ERROR(process->build());
  return std::unique_ptr<ServerProcess>(std::move(process));
}

}  // namespace tandem::app
