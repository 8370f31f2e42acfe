// A whole server on its own loop thread with a fake engine behind it, and clients for it.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/json.h"
#include "net/sse.h"
#include "server/server.h"
#include "tests/net/support.h"
#include "tests/server/fake_engine.h"

namespace tandem::server::testing {

using net::testing::eventually;
using net::testing::RawClient;
using std::literals::chrono_literals::operator""s;

inline std::shared_ptr<const text::Tokenizer> tiny_tokenizer() {
  static const auto tokenizer = [] {
    auto loaded = text::Tokenizer::load(TANDEM_SOURCE_DIR "/models/tiny/tokenizer.json");
    CHECK(loaded.has_value());
    return *loaded;
  }();
  return tokenizer;
}

inline ServerConfig tiny_config() {
  ServerConfig config;
  config.model_path = "models/tiny";
  config.model_type = "deepseek_v3";
  config.architecture = "DeepseekV3ForCausalLM";
  config.context_length = 4096;
  config.vocab_size = 8192;
  config.eos_token_ids = {1};
  config.server_args_json = R"({"tp_size":1,"disaggregation_mode":"null"})";
  config.max_total_num_tokens = 65536;
  config.seed = 7;
  return config;
}

// Time that a test moves; safe to read from the loop's thread.
class TestClock final : public Clock {
 public:
  TimePoint now() const override { return TimePoint(Duration(nanoseconds_.load())); }
  double unix_seconds() const override { return seconds(now().time_since_epoch()); }
  void advance(Duration by) { nanoseconds_.fetch_add(by.count()); }

 private:
  std::atomic<int64_t> nanoseconds_{Duration(std::chrono::hours(1)).count()};
};

class Fixture {
 public:
  explicit Fixture(ServerConfig config = tiny_config(), bool started = true, net::HttpServerOptions options = {},
                   std::vector<const profile::FlightRecorder*> flight = {}) {
    ServerParts parts;
    parts.flight = std::move(flight);
    parts.loop = &loop_.loop();
    parts.clock = &clock_;
    parts.metrics = &metrics_;
    if (!config.skip_tokenizer_init) {
      parts.tokenizer = tiny_tokenizer();
      auto chat = text::ChatTemplate::load(TANDEM_SOURCE_DIR "/models/tiny");
      CHECK(chat.has_value());
      parts.chat_template = *chat;
    }
    auto made = Server::create(std::move(config), std::move(parts));
    CHECK(made.has_value());
    server_ = std::move(made).value();
    engine_ = std::make_unique<FakeEngine>(server_->engine_sink());
    loop_.on_loop([&] {
      if (started) server_->start(*engine_, nullptr);
      auto listening = net::HttpServer::listen(loop_.loop(), std::move(options), server_->handler());
      CHECK(listening.has_value());
      http_ = std::move(listening).value();
    });
  }
  ~Fixture() {
    loop_.on_loop([&] {
      http_.reset();
      server_.reset();
    });
  }

  FakeEngine& engine() { return *engine_; }
  Server& server() { return *server_; }
  TestClock& clock() { return clock_; }
  void on_loop(const std::function<void()>& task) { loop_.on_loop(task); }
  uint16_t port() const { return http_->port(); }
  bool idle() const { return server_->active_requests() == 0; }

  net::HttpResponse get(const std::string& path, net::Headers headers = {}) { return call("GET", path, {}, headers); }
  net::HttpResponse post(const std::string& path, std::string body, net::Headers headers = {}) {
    headers.emplace_back("Content-Type", "application/json");
    return call("POST", path, std::move(body), headers);
  }
  net::HttpResponse call(const std::string& method, const std::string& path, std::string body, net::Headers headers) {
    net::ClientRequest request;
    request.method = method;
    request.url = {"127.0.0.1", port(), path};
    request.headers = std::move(headers);
    if (method != "GET") request.body = std::make_shared<std::string>(std::move(body));
    auto response = net::fetch(std::move(request), 20s);
    EXPECT_TRUE(response.has_value()) << (response ? "" : response.error().message);
    return response ? *response : net::HttpResponse{.status = 0, .content_type = {}, .body = {}, .headers = {}};
  }

 private:
  net::testing::LoopThread loop_;
  TestClock clock_;
  profile::Metrics metrics_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<FakeEngine> engine_;
  std::unique_ptr<net::HttpServer> http_;
};

// The data of each event of a whole stream.
inline std::vector<std::string> events_of(const std::string& body) {
  std::vector<std::string> events;
  net::SseParser parser;
  parser.feed(body, [&](std::string_view data) { events.emplace_back(data); });
  return events;
}

// A JSON value that compares by text: "a.b.0" walks members and indices; missing: "(none)".
inline std::string at(const std::string& text, const std::string& pointer) {
  simdjson::dom::parser parser;
  simdjson::dom::element element;
  if (parser.parse(text).get(element)) return "(not JSON) " + text;
  simdjson::dom::element found;
  if (element.at_pointer(pointer).get(found)) return "(none)";
  std::string_view string;
  if (!found.get_string().get(string)) return std::string(string);
  return simdjson::minify(found);
}

inline api::FinishReason length_finish(int32_t length) {
  api::FinishReason finish;
  finish.kind = api::FinishKind::kLength;
  finish.length = length;
  return finish;
}

inline api::FinishReason stop_token(int32_t token) {
  api::FinishReason finish;
  finish.kind = api::FinishKind::kStopToken;
  finish.matched_token = token;
  return finish;
}

inline api::FinishReason abort_finish(std::string message, int32_t status) {
  api::FinishReason finish;
  finish.kind = api::FinishKind::kAbort;
  finish.message = std::move(message);
  finish.status_code = status;
  return finish;
}

inline api::EngineEvent event_of(const api::EngineRequest& request, std::vector<int32_t> tokens,
                                 std::optional<api::FinishReason> finish = std::nullopt) {
  api::EngineEvent event;
  event.id = request.id;
  event.tokens = std::move(tokens);
  event.prompt_tokens = static_cast<int32_t>(request.input_ids.size());
  event.finish = std::move(finish);
  return event;
}

// Says these ids one at a time, the last one with the finish.
inline FakeEngine::Script says(std::vector<int32_t> ids, std::optional<api::FinishReason> finish = std::nullopt) {
  return [ids, finish](const api::EngineRequest& request, const FakeEngine::Sink& sink) {
    for (size_t i = 0; i < ids.size(); ++i) {
      bool last = i + 1 == ids.size();
      auto end = finish ? finish : length_finish(static_cast<int32_t>(ids.size()));
      sink(event_of(request, {ids[i]}, last ? end : std::nullopt));
    }
  };
}

}  // namespace tandem::server::testing
