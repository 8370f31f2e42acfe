#include "net/http_client.h"

#include <atomic>
#include <mutex>
#include <vector>

#include "tests/net/support.h"

namespace tandem::net {
namespace {

using testing::eventually;
using testing::LoopThread;
using testing::RawServer;
using testing::ServerThread;
using testing::Steady;
using namespace std::chrono_literals;

Url local(uint16_t port, std::string path = "/") { return {"127.0.0.1", port, std::move(path)}; }

TEST(ParseUrl, TakesTheFormsThatFlagsHave) {
  struct Case {
    const char* text;
    const char* host;
    int port;
    const char* path;
  };
  for (const Case& c : std::vector<Case>{{"http://a.b:30000/generate?x=1", "a.b", 30000, "/generate?x=1"},
                                         {"http://a", "a", 80, "/"},
                                         {"localhost:8000", "localhost", 8000, "/"},
                                         {"10.0.0.1:1/x#part", "10.0.0.1", 1, "/x"},
                                         {"http://[::1]:81/y", "::1", 81, "/y"},
                                         {"[fe80::1]", "fe80::1", 80, "/"},
                                         {"http://h?q", "h", 80, "/?q"}}) {
    auto url = parse_url(c.text);
    ASSERT_TRUE(url.has_value()) << c.text << ": " << url.error().message;
    EXPECT_EQ(url->host, c.host) << c.text;
    EXPECT_EQ(url->port, c.port) << c.text;
    EXPECT_EQ(url->path, c.path) << c.text;
  }
  EXPECT_EQ(parse_url("http://[::1]:81")->origin(), "http://[::1]:81");
}

TEST(ParseUrl, RefusesTheRestWithAReason) {
  for (const char* text : {"", "http://", "https://a", "ftp://a", "http://a:0", "http://a:65536", "http://a:x",
                           "http://a:1 ", "http://[::1", "http://[::1]x", "http://u:p@h", "a b", "http://a/\r\nX: y"}) {
    auto url = parse_url(text);
    ASSERT_FALSE(url.has_value()) << text;
    EXPECT_NE(url.error().message.find("URL '"), std::string::npos);
  }
}

TEST(HttpClient, SendsBodyAndTailAsOneAndReadsTheAnswer) {
  ServerThread server([](HttpRequest request, std::shared_ptr<ResponseWriter> writer) {
    writer->send({201,
                  "text/plain",
                  request.method + request.target + request.body,
                  {{"X-Seen", *request.header("x-test") + *request.header("host")}}});
  });
  ClientRequest request{.url = server.url("/a?b=c")};
  request.headers = {{"X-Test", "1"}, {"Content-Length", "999"}};
  request.body = std::make_shared<const std::string>("{\"a\":1");
  request.body_tail = ",\"b\":2}";
  auto response = fetch(std::move(request), 5s);
  ASSERT_TRUE(response.has_value()) << response.error().message;
  EXPECT_EQ(response->status, 201);
  EXPECT_EQ(response->content_type, "text/plain");
  EXPECT_EQ(response->body, "POST/a?b=c{\"a\":1,\"b\":2}");
}

TEST(HttpClient, ResolvesNamesAndNamesTheHostThatItCannotResolve) {
  ServerThread server([](HttpRequest, std::shared_ptr<ResponseWriter> writer) { writer->send({}); });
  auto response = fetch({.method = "GET", .url = {"localhost", server.port(), "/"}}, 5s);
  ASSERT_TRUE(response.has_value()) << response.error().message;
  auto lost = fetch({.method = "GET", .url = {"no-such-host.invalid", 80, "/"}}, 30s);
  ASSERT_FALSE(lost.has_value());
  EXPECT_NE(lost.error().message.find("no-such-host.invalid"), std::string::npos) << lost.error().message;
}

TEST(HttpClient, ReachesAServerOverIpv6) {
  HttpServerOptions options;
  options.host = "::1";
  EventLoop probe;
  auto possible = HttpServer::listen(probe, options, [](HttpRequest, std::shared_ptr<ResponseWriter>) {});
  if (!possible) GTEST_SKIP() << "no IPv6 here: " << possible.error().message;
  ServerThread server(
      [](HttpRequest request, std::shared_ptr<ResponseWriter> writer) {
        writer->send({200, "text/plain", *request.header("host"), {}});
      },
      options);
  auto response = fetch({.method = "GET", .url = {"::1", server.port(), "/"}}, 5s);
  ASSERT_TRUE(response.has_value()) << response.error().message;
  EXPECT_EQ(response->body, "[::1]:" + std::to_string(server.port()));
}

struct CutAnswer {
  const char* name;
  const char* answer;
  ErrorCode code;
};
class HttpClientGets : public ::testing::TestWithParam<CutAnswer> {};

TEST_P(HttpClientGets, AnErrorForACutOrBrokenAnswer) {
  RawServer server([](int fd, int) {
    RawServer::hear_until(fd, "\r\n\r\n");
    RawServer::say(fd, GetParam().answer);
  });
  auto response = fetch({.method = "GET", .url = local(server.port())}, 5s);
  ASSERT_FALSE(response.has_value());
  EXPECT_EQ(response.error().code, GetParam().code) << response.error().message;
  EXPECT_NE(response.error().message.find(std::to_string(server.port())), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(
    All, HttpClientGets,
    ::testing::Values(
        CutAnswer{"Nothing", "", ErrorCode::kPeerLost},
        CutAnswer{"HalfAHeader", "HTTP/1.1 200 OK\r\nContent-Le", ErrorCode::kPeerLost},
        CutAnswer{"ShortBody", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123456789", ErrorCode::kPeerLost},
        CutAnswer{"NoLastChunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
                  ErrorCode::kPeerLost},
        CutAnswer{"CutInAChunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc", ErrorCode::kPeerLost},
        CutAnswer{"HalfALastChunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
                  ErrorCode::kPeerLost},
        CutAnswer{"NotHttp", "SSH-2.0-OpenSSH\r\n\r\n", ErrorCode::kCorrupt},
        CutAnswer{"BadChunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", ErrorCode::kCorrupt}),
    [](const auto& info) { return info.param.name; });

TEST(HttpClient, ReadsAnAnswerThatEndsWithTheConnectionAndSkipsInterimOnes) {
  RawServer server([](int fd, int) {
    RawServer::hear_until(fd, "\r\n\r\n");
    RawServer::say(
        fd, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nX: y\r\n\r\nHTTP/1.0 200 OK\r\n\r\nuntil the end");
  });
  auto response = fetch({.method = "GET", .url = local(server.port())}, 5s);
  ASSERT_TRUE(response.has_value()) << response.error().message;
  EXPECT_EQ(response->body, "until the end");
}

TEST(HttpClient, ReadsAnAnswerToAHeadRequestWithoutABody) {
  RawServer server([](int fd, int) {
    RawServer::hear_until(fd, "\r\n\r\n");
    RawServer::say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
  });
  auto response = fetch({.method = "HEAD", .url = local(server.port())}, 5s);
  ASSERT_TRUE(response.has_value()) << response.error().message;
}

TEST(HttpClient, HasADeadlineForConnectingForSilenceAndForTheWhole) {
  RawServer silent([](int fd, int) { RawServer::hear_until(fd, "never"); });
  ClientRequest request{.method = "GET", .url = local(silent.port())};
  request.idle_timeout = 50ms;
  auto response = fetch(request, 5s);
  ASSERT_FALSE(response.has_value());
  EXPECT_EQ(response.error().code, ErrorCode::kTimeout) << response.error().message;
  request.idle_timeout = 1h;
  response = fetch(request, 50ms);
  ASSERT_FALSE(response.has_value());
  EXPECT_EQ(response.error().code, ErrorCode::kTimeout) << response.error().message;
}

TEST(HttpClient, ARefusedConnectionIsAPeerLost) {
  uint16_t port;
  {
    port = RawServer([](int, int) {}).port();
  }
  auto response = fetch({.method = "GET", .url = local(port)}, 5s);
  ASSERT_FALSE(response.has_value());
  EXPECT_EQ(response.error().code, ErrorCode::kPeerLost);
  EXPECT_NE(response.error().message.find("cannot connect"), std::string::npos) << response.error().message;
}

// A client on a loop thread whose calls are made and judged there.
class ClientThread : public LoopThread {
 public:
  ClientThread() {
    on_loop([&] { client_ = std::make_unique<HttpClient>(loop()); });
  }
  ~ClientThread() {
    on_loop([&] {
      call.reset();
      client_.reset();
    });
  }
  struct Answer {
    std::string body;
    std::atomic<int> status = 0, done = 0;
    std::atomic<bool> ok = false;
    std::atomic<size_t> received = 0;
  };
  void start(ClientRequest request, Answer& answer) {
    on_loop([&] {
      ClientHandlers handlers;
      handlers.on_headers = [&](int status, const Headers&) { answer.status = status; };
      handlers.on_body = [&](std::string_view bytes) {
        answer.body.append(bytes);
        answer.received += bytes.size();
      };
      handlers.on_done = [&](Status status) {
        answer.ok = status.has_value();
        ++answer.done;
      };
      call = client_->start(std::move(request), std::move(handlers));
    });
  }
  bool get(ClientRequest request) {
    Answer answer;
    start(std::move(request), answer);
    bool over = eventually([&] { return answer.done == 1; });
    return over && answer.ok;
  }
  size_t pooled() {
    size_t count = 0;
    on_loop([&] { count = client_->pooled_connections(); });
    return count;
  }

  std::shared_ptr<ClientCall> call;  // the loop's thread

 private:
  std::unique_ptr<HttpClient> client_;
};

TEST(HttpClient, ReusesAPooledConnection) {
  std::mutex mutex;
  std::vector<std::string> remotes;
  ServerThread server([&](HttpRequest request, std::shared_ptr<ResponseWriter> writer) {
    std::lock_guard lock(mutex);
    remotes.push_back(request.remote);
    writer->send({200, "text/plain", "x", {}});
  });
  ClientThread client;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(client.get({.url = server.url("/")}));
    ASSERT_EQ(client.pooled(), 1u);
  }
  ClientRequest apart{.url = server.url("/")};
  apart.keep_alive = false;
  ASSERT_TRUE(client.get(apart));
  EXPECT_EQ(remotes[0], remotes[1]);
  EXPECT_EQ(remotes[0], remotes[2]);
  EXPECT_NE(remotes[0], remotes[3]);
}

TEST(HttpClient, SendsAgainOnceWhenAPooledConnectionTurnsOutStale) {
  std::atomic<int> heard = 0;
  // The first connection answers one request, takes a second one and closes without a word.
  RawServer server([&](int fd, int nth) {
    for (int i = 0; i < (nth == 0 ? 2 : 1); ++i) {
      RawServer::hear_until(fd, "\r\n\r\nbody");
      ++heard;
      if (nth == 0 && i == 1) return;
      RawServer::say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    }
  });
  ClientThread client;
  ClientRequest request{.url = local(server.port())};
  request.body = std::make_shared<const std::string>("body");
  ASSERT_TRUE(client.get(request));
  ASSERT_EQ(client.pooled(), 1u);
  EXPECT_TRUE(client.get(request));
  EXPECT_EQ(heard, 3);
}

TEST(HttpClient, DoesNotSendAgainOnAFreshConnection) {
  std::atomic<int> heard = 0;
  RawServer server([&](int fd, int) {
    RawServer::hear_until(fd, "\r\n\r\n");
    ++heard;
  });
  ClientThread client;
  EXPECT_FALSE(client.get({.url = local(server.port())}));
  EXPECT_EQ(heard, 1);
}

TEST(HttpClient, CancelClosesTheConnectionAndNoHandlerFollows) {
  std::atomic<bool> arrived = false, gone = false;
  std::shared_ptr<ResponseWriter> kept;
  ServerThread server([&](HttpRequest, std::shared_ptr<ResponseWriter> writer) {
    writer->on_closed([&] { gone = true; });
    kept = std::move(writer);
    arrived = true;
  });
  ClientThread client;
  ClientThread::Answer answer;
  client.start({.url = server.url("/")}, answer);
  ASSERT_TRUE(eventually([&] { return arrived.load(); }));
  client.on_loop([&] { client.call->cancel(); });
  EXPECT_TRUE(eventually([&] { return gone.load(); }));
  client.on_loop([] {});
  EXPECT_EQ(answer.done, 0);
}

TEST(HttpClient, DroppingTheHandleInsideItsOwnHandlerIsFine) {
  std::atomic<bool> gone = false;
  std::shared_ptr<ResponseWriter> kept;
  ServerThread server([&](HttpRequest, std::shared_ptr<ResponseWriter> writer) {
    writer->on_closed([&] { gone = true; });
    writer->begin(200, "text/plain", {});
    writer->write("first");
    kept = std::move(writer);
  });
  LoopThread client_thread;
  std::unique_ptr<HttpClient> client;
  std::shared_ptr<ClientCall> call;
  std::atomic<int> pieces = 0;
  client_thread.on_loop([&] {
    client = std::make_unique<HttpClient>(client_thread.loop());
    std::string big_capture(100, 'x');
    ClientHandlers handlers;
    handlers.on_body = [&, big_capture](std::string_view) {
      call.reset();
      if (big_capture == std::string(100, 'x')) ++pieces;
    };
    call = client->start({.url = server.url("/")}, std::move(handlers));
  });
  EXPECT_TRUE(eventually([&] { return gone.load(); }));
  client_thread.on_loop(
      [&] { client.reset(); });  // behind the handler, which may still run when the server sees the end
  EXPECT_EQ(pieces, 1);
}

TEST(HttpClient, PauseStopsReadingAndTheServersBacklogGrows) {
  std::shared_ptr<ResponseWriter> writer;
  std::atomic<bool> arrived = false;
  ServerThread server([&](HttpRequest, std::shared_ptr<ResponseWriter> w) {
    w->begin(200, "application/octet-stream", {});
    w->write("start");
    writer = std::move(w);
    arrived = true;
  });
  ClientThread client;
  ClientThread::Answer answer;
  client.start({.url = server.url("/")}, answer);
  ASSERT_TRUE(eventually([&] { return arrived && answer.received == 5; }));
  client.on_loop([&] { client.call->pause(); });
  const std::string piece(1 << 20, 'x');
  size_t sent = 5;
  // The kernel's buffers fill up first.
  ASSERT_TRUE(eventually([&] {
    if (writer->backlog() < 8 * piece.size() && writer->write(piece)) sent += piece.size();
    return writer->backlog() >= 8 * piece.size();
  }));
  client.on_loop([] {});
  EXPECT_LE(answer.received, 5 + (size_t(1) << 20)) << "at most what was read before the pause took effect";
  client.on_loop([&] { client.call->resume(); });
  writer->end();
  EXPECT_TRUE(eventually([&] { return answer.done == 1; }));
  EXPECT_TRUE(answer.ok);
  EXPECT_EQ(answer.received, sent);
}

TEST(HttpClient, AnEarlyAnswerToALargeUploadArrives) {
  HttpServerOptions options;
  options.max_body_bytes = 1000;
  ServerThread server([](HttpRequest, std::shared_ptr<ResponseWriter> writer) { writer->send({}); }, options);
  ClientRequest request{.url = server.url("/")};
  request.body = std::make_shared<const std::string>(32 << 20, 'x');
  auto response = fetch(std::move(request), 10s);
  ASSERT_TRUE(response.has_value()) << response.error().message;
  EXPECT_EQ(response->status, 413);
}

TEST(HttpClient, ALargeBodyArrivesWhole) {
  std::string expected(20 << 20, '\0');
  for (size_t i = 0; i < expected.size(); ++i) expected[i] = static_cast<char>(i * 2654435761u >> 24);
  ServerThread server([&](HttpRequest request, std::shared_ptr<ResponseWriter> writer) {
    writer->send({200, "application/octet-stream", std::move(request.body), {}});
  });
  ClientRequest request{.url = server.url("/")};
  request.body = std::make_shared<const std::string>(expected);
  auto response = fetch(std::move(request), 30s);
  ASSERT_TRUE(response.has_value()) << response.error().message;
  EXPECT_TRUE(response->body == expected);
}

}  // namespace
}  // namespace tandem::net
