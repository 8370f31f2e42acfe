// What a router adds: time per request and requests per second against fake servers, directly and through the router;
// the scan and splice of request bodies; the choice of a pair. Everything shares this machine's cores.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "api/bootstrap.h"
#include "net/http_client.h"
#include "net/http_server.h"
#include "router/pick_pair.h"
#include "router/router.h"

namespace tandem::router {
namespace {

using Steady = std::chrono::steady_clock;

struct Loop {
  Loop() : thread([this] { loop.run(); }) {}
  ~Loop() { finish(); }
  void finish() {
    loop.stop();
    if (thread.joinable()) thread.join();
  }
  net::EventLoop loop;
  std::jthread thread;
};

// One prefill and one decode server on one loop, a router on another, the client on a third.
struct Setup {
  Setup() {
    auto answer = [](net::HttpRequest, std::shared_ptr<net::ResponseWriter> writer) {
      writer->send({200, "application/json", R"({"text":"answer","meta_info":{}})", {}});
    };
    prefill = std::move(net::HttpServer::listen(servers.loop, {}, answer)).value();
    decode = std::move(net::HttpServer::listen(servers.loop, {}, answer)).value();
    RouterConfig config;
    config.instances = {{url(prefill->port()), Role::kPrefill, 8998}, {url(decode->port()), Role::kDecode, {}}};
    router = std::move(Router::create(routing.loop, config, clock, 1, metrics)).value();
    front = std::move(net::HttpServer::listen(routing.loop, {}, router->handler())).value();
    while (!ready()) std::this_thread::yield();
    client = std::make_unique<net::HttpClient>(clients.loop);
  }
  ~Setup() {
    for (Loop* loop : {&clients, &routing, &servers}) loop->finish();
  }
  static std::string url(uint16_t port) { return "http://127.0.0.1:" + std::to_string(port); }
  bool ready() const {
    auto response =
        net::fetch({.method = "GET", .url = {"127.0.0.1", front->port(), "/health"}}, std::chrono::seconds(5));
    return response && response->status == 200;
  }

  SystemClock clock;
  profile::Metrics metrics;
  Loop servers, routing, clients;
  std::unique_ptr<net::HttpServer> prefill, decode, front;
  std::unique_ptr<Router> router;
  std::unique_ptr<net::HttpClient> client;
};

void relay(benchmark::State& state) {
  const bool through_router = state.range(0) == 1;
  const auto connections = static_cast<size_t>(state.range(1));
  const auto prompt_bytes = static_cast<size_t>(state.range(2));
  constexpr size_t kRequests = 2000;
  Setup setup;
  const auto body = std::make_shared<const std::string>(R"({"text":")" + std::string(prompt_bytes, 'p') + R"("})");
  const uint16_t port = through_router ? setup.front->port() : setup.decode->port();
  std::vector<double> micros;
  std::vector<std::shared_ptr<net::ClientCall>> calls(connections);
  size_t started = 0;
  std::atomic<size_t> done = 0;
  std::function<void(size_t)> next = [&](size_t slot) {
    if (started++ >= kRequests) return;
    net::ClientRequest request{.method = "POST", .url = {"127.0.0.1", port, "/generate"}};
    request.body = body;
    net::ClientHandlers handlers;
    handlers.on_headers = [](int status, const net::Headers&) { CHECK(status == 200); };
    handlers.on_done = [&, slot, begin = Steady::now()](Status status) {
      CHECK(status.has_value());
      micros.push_back(seconds(Steady::now() - begin) * 1e6);
      next(slot);
      ++done;
    };
    calls[slot] = setup.client->start(std::move(request), std::move(handlers));
  };
  for (auto _ : state) {
    done = 0;
    setup.clients.loop.post([&] {
      started = 0;
      for (size_t slot = 0; slot < connections; ++slot) next(slot);
    });
    while (done < kRequests) std::this_thread::yield();
  }
  setup.clients.finish();
  std::sort(micros.begin(), micros.end());
  state.counters["requests/s"] =
      benchmark::Counter(static_cast<double>(state.iterations() * kRequests), benchmark::Counter::kIsRate);
  state.counters["us_p50"] = micros[micros.size() / 2];
  state.counters["us_p90"] = micros[micros.size() * 9 / 10];
  state.counters["us_p99"] = micros[micros.size() * 99 / 100];
}
BENCHMARK(relay)
    ->Name("router/relay")
    ->ArgNames({"routed", "connections", "prompt_bytes"})
    ->ArgsProduct({{0, 1}, {1, 64}, {200, 20000}})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

void prepare(benchmark::State& state) {
  std::string original;
  if (state.range(0) == 0) {
    original = R"({"text":")" + std::string(static_cast<size_t>(state.range(1)), 'p') + R"(","stream":true})";
  } else {
    original = R"({"input_ids":[1)";
    while (original.size() < static_cast<size_t>(state.range(1))) original += ",12345";
    original += "]}";
  }
  for (auto _ : state) {
    std::string body = original;
    auto routed = api::prepare_routed_body(api::BodyKind::kGenerate, body);
    benchmark::DoNotOptimize(routed.has_value());
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * original.size()));
}
BENCHMARK(prepare)
    ->Name("router/prepare_body")
    ->ArgNames({"ids", "bytes"})
    ->ArgsProduct({{0, 1}, {1000, 1000000, 100000000}});

void cache_aware(benchmark::State& state) {
  Picker picker(PolicyConfig{}, 1);
  std::vector<Candidate> candidates;
  for (uint32_t i = 0; i < 8; ++i) candidates.push_back({InstanceId{i + 1}, 0, {}});
  uint64_t turn = 0;
  TimePoint now{};
  for (auto _ : state) {
    const std::string text = std::string(500, static_cast<char>('a' + turn % 20)) + std::to_string(turn);
    ++turn;
    now += std::chrono::milliseconds(1);
    benchmark::DoNotOptimize(picker.pick(candidates, text, now));
  }
}
BENCHMARK(cache_aware)->Name("router/pick/cache_aware/instances=8/text=500");

}  // namespace
}  // namespace tandem::router

BENCHMARK_MAIN();
