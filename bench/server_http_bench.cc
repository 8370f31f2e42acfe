// What the HTTP face costs: a fake engine answers at once, so all the time is parsing, text, formatting and sockets.
// Prints one JSON line per case: microseconds per request (or per streamed token), median, p10, p90.
//   server_http_bench [models/tiny]
#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <future>
#include <thread>

#include "server/server.h"

namespace {

using namespace tandem;
using Steady = std::chrono::steady_clock;

// Every request gets max_new_tokens ids, one event each.
class EchoEngine final : public engine::Engine {
 public:
  explicit EchoEngine(std::function<void(api::EngineEvent)> sink) : sink_(std::move(sink)) {}
  PushResult submit(engine::Command command) override {
    auto* submit = std::get_if<engine::SubmitCommand>(&command);
    if (!submit) return PushResult::kPushed;
    const api::EngineRequest& request = submit->request;
    for (int32_t i = 1; i <= request.sampling->max_new_tokens; ++i) {
      api::EngineEvent event;
      event.id = request.id;
      event.tokens = {100 + i % 1000};
      event.prompt_tokens = static_cast<int32_t>(request.input_ids.size());
      if (i == request.sampling->max_new_tokens) event.finish.emplace().length = i;
      sink_(std::move(event));
    }
    return PushResult::kPushed;
  }
  std::vector<engine::EngineSnapshot> snapshots() const override { return {{}}; }
  void wake() override {}
  bool turn() override { return false; }
  void run(std::stop_token) override {}

 private:
  std::function<void(api::EngineEvent)> sink_;
};

class Client {
 public:
  explicit Client(uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    int on = 1;
    ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }
  ~Client() { ::close(fd_); }
  // Reads until the answer's last byte: `ending` for streams, the content length otherwise. Returns the bytes read.
  size_t exchange(const std::string& path, const std::string& body, bool stream) {
    std::string head =
        fmt::format("POST {} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", path,
                    body.size());
    say(head + body);
    std::string got;
    size_t total = 0;
    while (true) {
      char buffer[65536];
      ssize_t n = ::recv(fd_, buffer, sizeof buffer, 0);
      CHECK(n > 0);
      total += static_cast<size_t>(n);
      got.append(buffer, static_cast<size_t>(n));
      if (stream ? got.ends_with("\r\n0\r\n\r\n") : is_whole(got)) return total;
      if (stream && got.size() > 64) got.erase(0, got.size() - 64);
    }
  }

 private:
  void say(std::string_view bytes) {
    while (!bytes.empty()) {
      ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      CHECK(n > 0);
      bytes.remove_prefix(static_cast<size_t>(n));
    }
  }
  static bool is_whole(const std::string& got) {
    size_t end = got.find("\r\n\r\n");
    if (end == std::string::npos) return false;
    std::string lower;
    for (char c : got.substr(0, end)) lower += static_cast<char>(std::tolower(c));
    size_t at = lower.find("content-length: ");
    CHECK(at != std::string::npos);
    return got.size() >= end + 4 + std::stoul(lower.substr(at + 16));
  }
  int fd_;
};

struct Case {
  const char* name;
  const char* path;
  std::string body;
  bool stream;
  int tokens;  // over which the time is divided; 1: per request
  int rounds;
};

std::string ids(int count) {
  std::string out = "[5";
  for (int i = 1; i < count; ++i) out += "," + std::to_string(5 + i % 8000);
  return out + "]";
}

std::vector<Case> cases() {
  auto one = [](int prompt, int tokens, const char* stream) {
    return fmt::format(R"({{"input_ids":{},"sampling_params":{{"max_new_tokens":{}}},"stream":{}}})", ids(prompt),
                       tokens, stream);
  };
  std::string batch = R"({"input_ids":[)";
  for (int i = 0; i < 64; ++i) batch += (i ? "," : "") + ids(256);
  batch += R"(],"sampling_params":{"max_new_tokens":128},"stream":true})";
  std::string chat = R"({"messages":[{"role":"user","content":"Tell me a story."}],"max_tokens":256,"stream":true})";
  return {
      {"server/generate/whole/prompt=8/tokens=1", "/generate", one(8, 1, "false"), false, 1, 2000},
      {"server/generate/whole/prompt=2000/tokens=1", "/generate", one(2000, 1, "false"), false, 1, 500},
      {"server/generate/stream/prompt=8/tokens=256/per_token", "/generate", one(8, 256, "true"), true, 256, 100},
      {"server/chat/stream/tokens=256/per_token", "/v1/chat/completions", chat, true, 256, 100},
      {"server/generate/stream/batch=64/tokens=128/per_token", "/generate", batch, true, 64 * 128, 10},
  };
}

void measure(uint16_t port, const Case& c) {
  Client client(port);
  std::vector<double> micros;
  size_t bytes = 0;
  for (int i = -c.rounds / 10; i < c.rounds; ++i) {
    auto from = Steady::now();
    bytes = client.exchange(c.path, c.body, c.stream);
    double took = std::chrono::duration<double, std::micro>(Steady::now() - from).count();
    if (i >= 0) micros.push_back(took / c.tokens);
  }
  std::sort(micros.begin(), micros.end());
  auto at = [&](double share) { return micros[static_cast<size_t>(share * static_cast<double>(micros.size() - 1))]; };
  fmt::print(R"({{"case":"{}","micros_p50":{:.2f},"micros_p10":{:.2f},"micros_p90":{:.2f},"answer_bytes":{}}})"
             "\n",
             c.name, at(0.5), at(0.1), at(0.9), bytes);
}

}  // namespace

int main(int argc, char** argv) {
  std::string model = argc > 1 ? argv[1] : "models/tiny";
  net::EventLoop loop;
  SystemClock clock;
  server::ServerConfig config;
  config.model_path = model;
  config.context_length = 4096;
  config.vocab_size = 8192;
  server::ServerParts parts;
  parts.loop = &loop;
  parts.clock = &clock;
  auto tokenizer = text::Tokenizer::load(model + "/tokenizer.json");
  auto chat = text::ChatTemplate::load(model);
  if (!tokenizer || !chat) {
    std::fprintf(stderr, "cannot load %s\n", model.c_str());
    return 2;
  }
  parts.tokenizer = *tokenizer;
  parts.chat_template = *chat;
  auto server = server::Server::create(config, parts);
  CHECK(server.has_value());
  EchoEngine engine((*server)->engine_sink());
  (*server)->start(engine, nullptr);
  auto http = net::HttpServer::listen(loop, {}, (*server)->handler());
  CHECK(http.has_value());
  uint16_t port = (*http)->port();
  std::jthread thread([&] { loop.run(); });
  for (const Case& c : cases()) measure(port, c);
  loop.stop();
  thread.join();
  (*http).reset();
  (*server).reset();
}
