// Stand-ins for prefill and decode servers, and a router over them, all in this process.
#pragma once

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "base/json.h"
#include "profile/metrics.h"
#include "router/router.h"
#include "tests/net/support.h"

namespace tandem::router::testing {

using net::HttpRequest;
using net::testing::eventually;
using Writer = std::shared_ptr<net::ResponseWriter>;

// Answers /health by `healthy`; everything else goes to `serve`, and is remembered first.
class FakeInstance {
 public:
  using Serve = std::function<void(const HttpRequest&, const Writer&)>;

  explicit FakeInstance(Serve serve) : serve_(std::move(serve)) {
    server_ = std::make_unique<net::testing::ServerThread>([this](HttpRequest request, Writer writer) {
      if (request.path == "/health") {
        ++checks;
        return writer->send({healthy ? 200 : 503, "text/plain", "", {}});
      }
      writer->on_closed([this] { ++hang_ups; });
      Serve serve;
      {
        std::lock_guard lock(mutex_);
        requests_.push_back(request);
        serve = serve_;
      }
      serve(request, writer);
    });
    port_ = server_->port();
  }
  ~FakeInstance() { stop(); }

  std::string url() const { return "http://127.0.0.1:" + std::to_string(port()); }
  uint16_t port() const { return port_; }
  void set(Serve serve) {
    std::lock_guard lock(mutex_);
    serve_ = std::move(serve);
  }
  std::vector<HttpRequest> requests() {
    std::lock_guard lock(mutex_);
    return requests_;
  }
  size_t count() { return requests().size(); }
  HttpRequest only() {
    EXPECT_TRUE(eventually([&] { return count() > 0; }));
    auto all = requests();
    EXPECT_EQ(all.size(), 1u);
    return all.empty() ? HttpRequest{} : all.front();
  }
  void keep(const Writer& writer) {
    std::lock_guard lock(mutex_);
    kept_.push_back(writer);
  }
  Writer kept(size_t index) {
    Writer writer;
    EXPECT_TRUE(eventually([&] {
      std::lock_guard lock(mutex_);
      if (index < kept_.size()) writer = kept_[index];
      return writer != nullptr;
    }));
    return writer;
  }
  void stop() { server_.reset(); }

  std::atomic<bool> healthy = true;
  std::atomic<int> hang_ups = 0, checks = 0;

 private:
  std::mutex mutex_;
  Serve serve_;
  std::vector<HttpRequest> requests_;
  std::vector<Writer> kept_;
  std::unique_ptr<net::testing::ServerThread> server_;
  uint16_t port_ = 0;
};

inline FakeInstance::Serve answers(int status, std::string body) {
  return [status, body](const HttpRequest&, const Writer& writer) {
    writer->send({status, "application/json", body, {}});
  };
}

inline RouterConfig quick_config() {
  RouterConfig config;
  config.policy.policy = Policy::kRoundRobin;
  config.health.interval = std::chrono::milliseconds(50);
  config.health.recovery_interval = std::chrono::milliseconds(10);
  config.retry.initial_backoff = std::chrono::milliseconds(1);
  return config;
}

// The router on its own loop, with an HttpServer before it.
class RouterThread : public net::testing::LoopThread {
 public:
  explicit RouterThread(RouterConfig config, net::HttpServerOptions options = {}) {
    on_loop([&] {
      auto router = Router::create(loop(), std::move(config), clock_, 1, metrics_);
      ASSERT_TRUE(router.has_value()) << router.error().message;
      router_ = std::move(router).value();
      auto server = net::HttpServer::listen(loop(), std::move(options), router_->handler());
      ASSERT_TRUE(server.has_value()) << server.error().message;
      server_ = std::move(server).value();
    });
  }
  ~RouterThread() {
    on_loop([&] {
      server_.reset();
      router_.reset();
    });
  }
  uint16_t port() const { return server_->port(); }
  Router& router() { return *router_; }
  size_t running() {
    size_t count = 0;
    on_loop([&] { count = router_->running(); });
    return count;
  }
  bool wait_ready() {
    return eventually([&] { return ask("GET", "/health").status == 200; });
  }
  net::HttpResponse ask(std::string method, std::string path, std::string body = "", net::Headers headers = {}) {
    net::ClientRequest request{.method = std::move(method), .url = {"127.0.0.1", port(), std::move(path)}};
    request.headers = std::move(headers);
    if (!body.empty()) request.body = std::make_shared<const std::string>(std::move(body));
    auto response = net::fetch(std::move(request), std::chrono::seconds(20));
    EXPECT_TRUE(response.has_value()) << response.error().message;
    return response ? std::move(response).value() : net::HttpResponse{0, "", "", {}};
  }
  std::string metrics() const { return metrics_.scrape(); }

 private:
  SystemClock clock_;
  profile::Metrics metrics_;
  std::unique_ptr<Router> router_;
  std::unique_ptr<net::HttpServer> server_;
};

// One value out of a JSON text, as JSON: at(body, "/bootstrap_room").
inline std::string at(std::string_view text, std::string_view pointer) {
  auto document = json::Document::parse(text, "test");
  if (!document) return "not JSON: " + std::string(text);
  simdjson::dom::element element;
  if (document->root().at_pointer(pointer).get(element)) return "";
  return std::string(simdjson::minify(element));
}

}  // namespace tandem::router::testing
