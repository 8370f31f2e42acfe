// A scripted server for the load clients' tests: an HttpServer on a loop and thread of its own. Counts what it sees.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/json.h"
#include "net/http_server.h"
#include "net/sse.h"
#include "tests/loadgen/tokenizer.h"

namespace tandem::loadgen {

inline net::HttpResponse json_answer(int status, std::string body) {
  net::HttpResponse response;
  response.status = status;
  response.body = std::move(body);
  return response;
}

class FakeServer {
 public:
  // What the script may use of one generation request; everything on the server's thread.
  struct Call {
    FakeServer& server;
    size_t index;  // in order of arrival, warm-up included
    std::string path, body, authorization;
    int32_t tokens;  // asked for
    std::shared_ptr<net::ResponseWriter> writer;
  };
  using Script = std::function<void(std::shared_ptr<Call> call)>;

  explicit FakeServer(Script script) : script_(std::move(script)) {
    auto listening = net::HttpServer::listen(loop_, {}, [this](net::HttpRequest request, auto writer) {
      on_request(std::move(request), std::move(writer));
    });
    EXPECT_TRUE(listening) << (listening ? "" : listening.error().message);
    server_ = *std::move(listening);
    port_ = server_->port();
    thread_ = std::jthread([this] { loop_.run(); });
  }
  ~FakeServer() {
    loop_.stop();
    thread_.join();
    timers_.clear();
    server_.reset();
  }

  uint16_t port() const { return port_; }
  std::string origin() const { return fmt::format("http://127.0.0.1:{}", port_); }

  // Runs task later on the server's thread.
  void after(int ms, std::function<void()> task) {
    timers_.push_back(loop_.after(std::chrono::milliseconds(ms), std::move(task)));
  }

  std::string server_info = "{}";  // set before the first request
  int flush_status = 200;
  std::atomic<int> flushes{0}, generations{0}, alive{0}, peak_alive{0};

 private:
  void on_request(net::HttpRequest request, std::shared_ptr<net::ResponseWriter> writer) {
    if (request.path == "/v1/models") return writer->send(json_answer(200, R"({"data": [{"id": "served-model"}]})"));
    if (request.path == "/get_server_info") return writer->send(json_answer(200, server_info));
    if (request.path == "/flush_cache") {
      ++flushes;
      return writer->send(json_answer(flush_status, "Cache flushed."));
    }
    auto call = std::make_shared<Call>(Call{*this, size_t(generations++), request.path, request.body, "", 0, writer});
    if (const std::string* header = request.header("Authorization")) call->authorization = *header;
    if (auto body = json::Document::parse(request.body, "body")) {
      int64_t tokens = 0;
      for (auto found : {body->root()["sampling_params"]["max_new_tokens"], body->root()["max_tokens"],
                         body->root()["max_completion_tokens"]}) {
        if (!found.get(tokens)) call->tokens = int32_t(tokens);
      }
    }
    script_(std::move(call));
  }

  Script script_;
  net::EventLoop loop_;
  std::unique_ptr<net::HttpServer> server_;
  uint16_t port_ = 0;
  std::vector<std::shared_ptr<net::EventLoop::Timer>> timers_;  // the server's thread
  std::jthread thread_;
};

// One event of the backend that call->path belongs to, with `count` of the tokens so far.
inline std::string token_event(const FakeServer::Call& call, int32_t count) {
  const bool last = count == call.tokens;
  if (call.path == "/generate") {
    std::string text;
    for (int32_t i = 0; i < count; ++i) text += " the";
    return net::sse_event(
        fmt::format(R"({{"text": "{}", "meta_info": {{"completion_tokens": {}, "finish_reason": {}}}}})", text, count,
                    last ? R"({"type": "length"})" : "null"));
  }
  const char* form = call.path == "/v1/completions"
                         ? R"({{"choices": [{{"text": " the", "finish_reason": {}}}]}})"
                         : R"({{"choices": [{{"delta": {{"content": " the"}}, "finish_reason": {}}}]}})";
  return net::sse_event(fmt::format(fmt::runtime(form), last ? R"("length")" : "null"));
}

// Answers with all tokens: the first after first_ms, the others gap_ms apart.
inline void stream_tokens(std::shared_ptr<FakeServer::Call> call, int first_ms, int gap_ms, int32_t sent = 0) {
  FakeServer& server = call->server;
  if (sent == 0) {
    server.peak_alive = std::max(server.peak_alive.load(), ++server.alive);
    call->writer->begin(200, "text/event-stream", {});
  }
  server.after(sent == 0 ? first_ms : gap_ms, [call, gap_ms, sent] {
    call->writer->write(token_event(*call, sent + 1));
    if (sent + 1 < call->tokens) return stream_tokens(call, 0, gap_ms, sent + 1);
    --call->server.alive;
    call->writer->write(net::sse_event("[DONE]"));
    call->writer->end();
  });
}

}  // namespace tandem::loadgen
