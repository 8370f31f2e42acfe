#include "app/follower_process.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>

#include "app/flight_files.h"
#include "app/machine.h"
#include "app/node_ranks.h"
#include "app/nodes.h"
#include "app/signals.h"
#include "base/log.h"
#include "net/access.h"
#include "net/http_server.h"
#include "profile/flight_explain.h"

namespace tandem::app {
namespace {

constexpr Duration kSignalPoll = std::chrono::milliseconds(50);

class FollowerProcess final : public ServerProcess {
 public:
  explicit FollowerProcess(ResolvedConfig config) : config_(std::move(config)) {}

  Status build();
  int run() override;

 private:
  Status listen();
  void answer(const net::HttpRequest& request, net::ResponseWriter& writer) const;
  void answer_flight(const net::HttpRequest& request, net::HttpResponse& response) const;
  void watch();
  void end(int status, const std::string& why);

  ResolvedConfig config_;
  const SystemClock clock_;
  profile::Metrics metrics_;
  std::unique_ptr<FlightFiles> flight_;
  net::EventLoop loop_;
  std::unique_ptr<NodeRanks> ranks_;
  std::unique_ptr<net::HttpServer> http_;
  std::shared_ptr<net::EventLoop::Timer> timer_;
  bool asked_to_stop_ = false;
  int exit_status_ = 0;
};

Status FollowerProcess::build() {
  const int num_threads =
      config_.flags.has("num_threads") ? int(config_.flags.integer("num_threads")) : num_usable_cpus();
  ASSIGN_OR_RETURN(MemoryPlan plan, plan_memory(config_, num_threads, available_memory_bytes()));
  for (const std::string& line : plan.lines) log::info("{}", line);
  ASSIGN_OR_RETURN(const auto nodes, meet_nodes(config_, plan, clock_));
  settle_engine(config_, plan);
  ASSIGN_OR_RETURN(flight_, FlightFiles::create(config_, nodes->token(), clock_));
  ASSIGN_OR_RETURN(ranks_, NodeRanks::create(config_, plan, {&clock_, &metrics_, num_threads, nodes, flight_.get()},
                                             [](const api::EngineEvent&) {}));
  return listen();
}

Status FollowerProcess::listen() {
  net::HttpServerOptions options;
  options.host = config_.flags.text("host");
  options.port = uint16_t(config_.flags.integer("port"));
  ASSIGN_OR_RETURN(
      http_, net::HttpServer::listen(loop_, std::move(options),
                                     [this](net::HttpRequest request, std::shared_ptr<net::ResponseWriter> writer) {
                                       answer(request, *writer);
                                     }));
  return Ok{};
}

void FollowerProcess::answer(const net::HttpRequest& request, net::ResponseWriter& writer) const {
  constexpr std::string_view kAlive[] = {"/ping", "/health", "/health_generate"};
  net::HttpResponse response;
  if (std::find(std::begin(kAlive), std::end(kAlive), request.path) != std::end(kAlive)) {
    response.status = ranks_->lost() ? 503 : 200;
  } else if (request.path == "/metrics" && config_.flags.enabled("enable_metrics")) {
    response.content_type = "text/plain; version=0.0.4; charset=utf-8";
    response.body = metrics_.scrape();
  } else if (request.path == "/flight_recorder" && !flight_->all().empty()) {
    answer_flight(request, response);
  } else {
    response.status = 404;
    response.body = R"({"detail":"Not Found: requests go to node 0"})";
  }
  writer.send(std::move(response));
}

// As a server's endpoint of this name.
void FollowerProcess::answer_flight(const net::HttpRequest& request, net::HttpResponse& response) const {
  const auto key = [this](const char* flag) { return config_.flags.has(flag) ? config_.flags.text(flag) : ""; };
  if (!net::is_authorized({key("api_key"), key("admin_api_key")}, request, net::Access::kControl)) {
    response.status = 401;
    response.body = R"({"error":"Unauthorized"})";
    return;
  }
  const bool raw = request.query == "raw=1";
  if (raw) response.content_type = "application/octet-stream";
  response.body = raw ? profile::copy_flights(flight_->all())
                      : profile::explanation_json(profile::explain(profile::read_flights(flight_->all())));
}

// A node does not leave by itself: node 0 is asked, drains, and ends all nodes together.
void FollowerProcess::watch() {
  if (ranks_->wants_stop()) return end(0, "node 0 ends the server");
  if (const std::optional<std::string> lost = ranks_->lost()) {
    flight_->explain_fault(flight_patience(config_.flags.number("watchdog_timeout")));
    return end(1, *lost);
  }
  if (signals_seen() > 1) return end(1, "stopped at once by a second signal");
  if (signals_seen() > 0 && !asked_to_stop_) {
    asked_to_stop_ = true;
    log::info("asking node 0 to drain and end the server");
    ranks_->ask_to_stop();
  }
  const double limit = config_.flags.number("watchdog_timeout");
  if (seconds(clock_.now() - ranks_->door().snapshot().last_progress) > limit) {
    log::error("Watchdog timeout (self.watchdog_timeout={}): the engine made no progress", limit);
    flight_->explain_fault(flight_patience(limit));
    _exit(1);  // the engine thread is stuck, so there is nobody to join
  }
  timer_ = loop_.after(kSignalPoll, [this] { watch(); });
}

void FollowerProcess::end(int status, const std::string& why) {
  log::write(status == 0 ? log::Level::kInfo : log::Level::kError, "", why);
  exit_status_ = status;
  loop_.stop();
}

int FollowerProcess::run() {
  ranks_->start();
  const int32_t first = config_.node_rank * config_.num_ranks;
  log::info("node {} of {} is ready: ranks {} to {}, requests go to node 0", config_.node_rank, config_.num_nodes,
            first, first + config_.num_ranks - 1);
  loop_.post([this] { watch(); });
  loop_.run();
  http_.reset();
  ranks_.reset();
  log::info("stopped");
  return exit_status_;
}

}  // namespace

Result<std::unique_ptr<ServerProcess>> start_follower(ResolvedConfig config) {
  auto process = std::make_unique<FollowerProcess>(std::move(config));
  RETURN_IF_ERROR(process->build());
  return std::unique_ptr<ServerProcess>(std::move(process));
}

}  // namespace tandem::app
