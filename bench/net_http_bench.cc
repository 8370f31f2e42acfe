// Requests per second and time per request on loopback with kept-alive connections, and events per second of streams.
// A server and a client, each on its own loop and thread, share this machine's cores: the figures are for both
// together.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "net/http_client.h"
#include "net/http_server.h"
#include "net/sse.h"

namespace tandem::net {
namespace {

using Steady = std::chrono::steady_clock;

struct Loop {
  Loop() : thread([this] { loop.run(); }) {}
  ~Loop() { loop.stop(); }
  EventLoop loop;
  std::jthread thread;
};

// Sends `total` requests over `connections` at a time; times in microseconds.
struct Load {
  HttpClient& client;
  Url url;
  std::string body;
  size_t total;
  std::atomic<size_t> started = 0, done = 0, bytes = 0;
  std::vector<double> micros = {};
  std::vector<std::shared_ptr<ClientCall>> calls = {};

  void next(size_t slot) {
    if (started++ >= total) return;
    ClientRequest request{.method = "POST", .url = url};
    request.body = std::make_shared<const std::string>(body);
    const auto begin = Steady::now();
    ClientHandlers handlers;
    handlers.on_body = [this](std::string_view piece) { bytes += piece.size(); };
    handlers.on_done = [this, slot, begin](Status status) {
      if (!status) std::fprintf(stderr, "%s\n", status.error().message.c_str());
      micros.push_back(seconds(Steady::now() - begin) * 1e6);
      ++done;
      next(slot);
    };
    calls[slot] = client.start(std::move(request), std::move(handlers));
  }
};

double percentile(std::vector<double>& values, double share) {
  const size_t index = std::min(values.size() - 1, static_cast<size_t>(share * static_cast<double>(values.size())));
  std::nth_element(values.begin(), values.begin() + index, values.end());
  return values[index];
}

void run_load(benchmark::State& state, HttpHandler handler, size_t connections, size_t per_round, size_t events) {
  Loop server_loop, client_loop;
  auto server = HttpServer::listen(server_loop.loop, {}, std::move(handler));
  auto client = std::make_unique<HttpClient>(client_loop.loop);
  std::vector<double> micros;
  for (auto _ : state) {
    Load load{*client, {"127.0.0.1", (*server)->port(), "/"}, std::string(200, 'x'), per_round};
    load.calls.resize(connections);
    client_loop.loop.post([&] {
      for (size_t slot = 0; slot < connections; ++slot) load.next(slot);
    });
    while (load.done < per_round) std::this_thread::yield();
    std::atomic<bool> cleared = false;
    client_loop.loop.post([&] {
      load.calls.clear();
      cleared = true;
    });
    while (!cleared) std::this_thread::yield();
    micros.insert(micros.end(), load.micros.begin(), load.micros.end());
  }
  const auto requests = static_cast<double>(state.iterations() * per_round);
  state.counters["requests/s"] = benchmark::Counter(requests, benchmark::Counter::kIsRate);
  if (events > 0) {
    state.counters["events/s"] =
        benchmark::Counter(requests * static_cast<double>(events), benchmark::Counter::kIsRate);
  }
  state.counters["us_p10"] = percentile(micros, 0.1);
  state.counters["us_p50"] = percentile(micros, 0.5);
  state.counters["us_p90"] = percentile(micros, 0.9);
  std::atomic<bool> gone = false;
  client_loop.loop.post([&] {
    client.reset();
    gone = true;
  });
  while (!gone) std::this_thread::yield();
  server_loop.loop.stop();
  server_loop.thread.join();
}

void http_answer(benchmark::State& state) {
  auto handler = [](HttpRequest request, std::shared_ptr<ResponseWriter> writer) {
    writer->send({200, "application/json", std::move(request.body), {}});
  };
  run_load(state, handler, static_cast<size_t>(state.range(0)), 5000, 0);
}
BENCHMARK(http_answer)
    ->Name("net/http/answer/body=200")
    ->ArgName("connections")
    ->Arg(1)
    ->Arg(16)
    ->Arg(256)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

void http_stream(benchmark::State& state) {
  constexpr size_t kEvents = 500;
  // Written from another thread, as an engine does.
  std::vector<std::shared_ptr<ResponseWriter>> streams;
  std::mutex mutex;
  std::jthread engine([&](std::stop_token stop) {
    const std::string event = sse_event(std::string(120, 'x'));
    while (!stop.stop_requested()) {
      std::vector<std::shared_ptr<ResponseWriter>> mine;
      {
        std::lock_guard lock(mutex);
        mine.swap(streams);
      }
      for (auto& writer : mine) writer->begin(200, "text/event-stream", {});
      for (size_t i = 0; i < kEvents; ++i) {
        for (auto& writer : mine) writer->write(event);
      }
      for (auto& writer : mine) writer->end();
      if (mine.empty()) std::this_thread::yield();
    }
  });
  auto handler = [&](HttpRequest, std::shared_ptr<ResponseWriter> writer) {
    std::lock_guard lock(mutex);
    streams.push_back(std::move(writer));
  };
  run_load(state, handler, static_cast<size_t>(state.range(0)), 200, kEvents);
}
BENCHMARK(http_stream)
    ->Name("net/http/stream/events=500/bytes=128")
    ->ArgName("connections")
    ->Arg(1)
    ->Arg(64)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

void sse_parse(benchmark::State& state) {
  std::string bytes;
  while (bytes.size() < (1 << 20)) bytes += sse_event(std::string(200, 'x'));
  size_t events = 0;
  for (auto _ : state) {
    SseParser parser;
    for (size_t at = 0; at < bytes.size(); at += 16384) {
      parser.feed(std::string_view(bytes).substr(at, 16384), [&](std::string_view) { ++events; });
    }
  }
  benchmark::DoNotOptimize(events);
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * bytes.size()));
}
BENCHMARK(sse_parse)->Name("net/sse/parse/event=200");

}  // namespace
}  // namespace tandem::net

BENCHMARK_MAIN();
