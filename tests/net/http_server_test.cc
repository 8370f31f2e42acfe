#include "net/http_server.h"

#include <atomic>
#include <mutex>
#include <vector>

#include "tests/net/support.h"

namespace tandem::net {
namespace {

using testing::count_of;
using testing::eventually;
using testing::RawClient;
using testing::ServerThread;
using testing::Steady;
using namespace std::chrono_literals;

// Answers what it got: "METHOD path?query [body]".
void echo(HttpRequest request, std::shared_ptr<ResponseWriter> writer) {
  HttpResponse response;
  response.content_type = "text/plain";
  response.body = request.method + " " + request.path + "?" + request.query + " [" + request.body + "]";
  writer->send(std::move(response));
}

TEST(HttpServer, AnswersARequestThatComesOneByteAtATime) {
  ServerThread server(echo);
  RawClient client(server.port());
  for (char c : std::string("POST /a%20b?x=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello")) {
    ASSERT_TRUE(client.say({&c, 1}));
  }
  std::string answer = client.hear_until("]");
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 200 OK\r\n")) << answer;
  EXPECT_TRUE(answer.ends_with("POST /a b?x=1 [hello]")) << answer;
}

TEST(HttpServer, JoinsAChunkedBodyThatComesOneByteAtATime) {
  ServerThread server(echo);
  RawClient client(server.port());
  for (char c : std::string("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
                            "3;name=\"v\"\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n")) {
    ASSERT_TRUE(client.say({&c, 1}));
  }
  EXPECT_TRUE(client.hear_until("]").ends_with("POST /? [abc0123456789]"));
  client.say("GET /again HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_TRUE(client.hear_until("]").ends_with("GET /again? []")) << "the connection stays usable";
}

TEST(HttpServer, AnswersPipelinedRequestsInOrderAlsoWhenTheFirstIsSlow) {
  std::shared_ptr<ResponseWriter> slow;
  std::atomic<int> calls = 0;
  ServerThread server([&](HttpRequest request, std::shared_ptr<ResponseWriter> writer) {
    if (request.path != "/slow") {
      ++calls;
      return echo(std::move(request), std::move(writer));
    }
    slow = std::move(writer);
    ++calls;  // only now may the test's thread look at it
  });
  RawClient client(server.port());
  client.say(
      "GET /slow HTTP/1.1\r\nHost: h\r\n\r\nPOST /two HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nxyz"
      "\r\nGET /three HTTP/1.1\r\nHost: h\r\n\r\n");
  ASSERT_TRUE(eventually([&] { return calls == 1; }));
  EXPECT_EQ(client.hear_some(20ms), "");
  EXPECT_EQ(calls, 1) << "the second request waits for the first one's answer";
  slow->send({200, "text/plain", "[slow]", {}});
  std::string all = client.hear_until("/three? []");
  EXPECT_LT(all.find("[slow]"), all.find("POST /two? [xyz]"));
  EXPECT_LT(all.find("POST /two? [xyz]"), all.find("GET /three? []"));
  EXPECT_EQ(count_of(all, "HTTP/1.1 200"), 3);
}

struct BadRequest {
  const char* name;
  std::string bytes;
  int status;
};

class HttpServerRefuses : public ::testing::TestWithParam<BadRequest> {};

TEST_P(HttpServerRefuses, WithItsStatusAndClosesAndKeepsServing) {
  HttpServerOptions options;
  options.max_header_bytes = 4096;
  options.max_body_bytes = 1000;
  std::atomic<int> calls = 0;
  ServerThread server(
      [&](HttpRequest request, std::shared_ptr<ResponseWriter> writer) {
        ++calls;
        echo(std::move(request), std::move(writer));
      },
      options);
  RawClient client(server.port());
  client.say(GetParam().bytes);
  std::string answer = client.hear_all(5s);
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 " + std::to_string(GetParam().status) + " ")) << answer;
  EXPECT_EQ(count_of(answer, "HTTP/1.1 "), 1) << "nothing behind a doubtful message is answered: " << answer;
  EXPECT_NE(answer.find("connection: close"), std::string::npos);
  EXPECT_EQ(calls, 0);
  RawClient other(server.port());
  other.say("GET /ok HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_TRUE(other.hear_until("]").ends_with("GET /ok? []"));
}

const std::string kSmuggled = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";

INSTANTIATE_TEST_SUITE_P(
    All, HttpServerRefuses,
    ::testing::Values(
        BadRequest{"NotHttp", "hello there\r\n\r\n", 400}, BadRequest{"NoVersion", "GET /\r\n\r\n", 400},
        BadRequest{"OtherVersion", "GET / HTTP/2.0\r\nHost: h\r\n\r\n", 400},
        BadRequest{"SpaceInTarget", "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 400},
        BadRequest{"ControlByteInTarget", std::string("GET /a\x01 HTTP/1.1\r\nHost: h\r\n\r\n"), 400},
        BadRequest{"NulInHeader", std::string("GET / HTTP/1.1\r\nHost: h\0\r\n\r\n", 28), 400},
        BadRequest{"BareLineFeeds", "GET / HTTP/1.1\nHost: h\n\n\r\n\r\n", 400},
        BadRequest{"SpaceBeforeColon", "GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400},
        BadRequest{"FoldedHeader", "GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", 400},
        BadRequest{"NoHost", "GET / HTTP/1.1\r\n\r\n", 400},
        BadRequest{"TwoHosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
        BadRequest{"TwoLengths",
                   "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 37\r\n\r\n" + kSmuggled, 400},
        BadRequest{"TwoEqualLengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
                   400},
        BadRequest{"ListOfLengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0, 0\r\n\r\n", 400},
        BadRequest{"SignedLength", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\nhello", 400},
        BadRequest{"NegativeLength", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", 400},
        BadRequest{"HugeLength", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400},
        BadRequest{"LengthThenChunks",
                   "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 37\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" +
                       kSmuggled,
                   400},
        BadRequest{"ChunksThenLength",
                   "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" +
                       kSmuggled,
                   400},
        BadRequest{"TwoTransferEncodings",
                   "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
                   "\r\n",
                   400},
        BadRequest{"ChunkedNotLast",
                   "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n" + kSmuggled, 501},
        BadRequest{"OtherCoding", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
                   501},
        BadRequest{"ChunksInHttp10", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
        BadRequest{"BadChunkSize", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400},
        BadRequest{"BadChunkEnd",
                   "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX\r\n0\r\n\r\n", 400},
        BadRequest{"HugeChunk", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n",
                   413},
        BadRequest{"EndlessChunkExtension",
                   "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1;" + std::string(300000, 'a'),
                   400},
        BadRequest{"ChunksBeyondTheLimit",
                   "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n200\r\n" + std::string(512, 'a') +
                       "\r\n200\r\n" + std::string(512, 'a') + "\r\n0\r\n\r\n",
                   413},
        BadRequest{"BodyBeyondTheLimit", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n", 413},
        BadRequest{"OneHugeHeader", "GET / HTTP/1.1\r\nHost: h\r\nX: " + std::string(5000, 'x') + "\r\n\r\n", 431},
        BadRequest{"EndlessTarget", "GET /" + std::string(100000, 'x'), 431},
        BadRequest{"ManySmallHeaders",
                   [] {
                     std::string bytes = "GET / HTTP/1.1\r\nHost: h\r\n";
                     for (int i = 0; i < 1000; ++i) bytes += "X-" + std::to_string(i) + ": y\r\n";
                     return bytes + "\r\n";
                   }(),
                   431},
        BadRequest{"UnknownExpectation", "POST / HTTP/1.1\r\nHost: h\r\nExpect: magic\r\nContent-Length: 1\r\n\r\nx",
                   417}),
    [](const auto& info) { return info.param.name; });

TEST(HttpServer, SaysContinueBeforeABodyThatIsAnnounced) {
  ServerThread server(echo);
  RawClient client(server.port());
  client.say("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  EXPECT_EQ(client.hear_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.say("ok");
  EXPECT_TRUE(client.hear_until("]").ends_with("[ok]"));
}

TEST(HttpServer, RefusesATooLargeAnnouncedBodyBeforeItIsSent) {
  HttpServerOptions options;
  options.max_body_bytes = 10;
  ServerThread server(echo, options);
  RawClient client(server.port());
  client.say("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\n");
  EXPECT_TRUE(client.hear_all(5s).starts_with("HTTP/1.1 413 "));
}

TEST(HttpServer, AnswersHeadWithoutABody) {
  ServerThread server(echo);
  RawClient client(server.port());
  client.say("HEAD /x HTTP/1.1\r\nHost: h\r\n\r\nGET /y HTTP/1.1\r\nHost: h\r\n\r\n");
  std::string all = client.hear_until("GET /y? []");
  EXPECT_NE(all.find("content-length: 11"), std::string::npos) << all;
  EXPECT_EQ(all.find("HEAD /x?"), std::string::npos) << all;
}

TEST(HttpServer, KeepsAliveByTheRulesOfTheVersion) {
  ServerThread server(echo);
  RawClient old_client(server.port());
  old_client.say("GET / HTTP/1.0\r\n\r\n");
  EXPECT_NE(old_client.hear_all(5s).find("connection: close"), std::string::npos) << "and the connection ended";
  RawClient old_keeping(server.port());
  old_keeping.say("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  EXPECT_NE(old_keeping.hear_until("]").find("connection: keep-alive"), std::string::npos);
  RawClient closing(server.port());
  closing.say("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
  EXPECT_NE(closing.hear_all(5s).find("connection: close"), std::string::npos);
}

TEST(HttpServer, EndsSlowSendersWith408AndSilentOnesWithoutAWord) {
  HttpServerOptions options;
  options.header_timeout = 60ms;
  options.body_idle_timeout = 60ms;
  options.keep_alive_timeout = 60ms;
  ServerThread server(echo, options);
  // Once more where the machine stands still between connecting and saying, as that counts as silence.
  const auto answer_to = [&](std::string_view said) {
    std::string answer;
    EXPECT_TRUE(eventually([&] {
      RawClient client(server.port());
      if (client.say(said)) answer = client.hear_all(5s);
      return !answer.empty();
    }));
    return answer;
  };
  EXPECT_TRUE(answer_to("GET / HTTP/1.1\r\nHos").starts_with("HTTP/1.1 408 "));
  EXPECT_TRUE(answer_to("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc").starts_with("HTTP/1.1 408 "));
  EXPECT_TRUE(answer_to("GET / HTTP/1.1\r\nHost: h\r\n\r\n").ends_with("[]"));
  EXPECT_EQ(RawClient(server.port()).hear_all(5s), "");
  EXPECT_TRUE(eventually([&] { return server.server().open_connections() == 0; }));
}

TEST(HttpServer, ADripOfHeaderBytesDoesNotMoveTheDeadline) {
  HttpServerOptions options;
  options.header_timeout = 100ms;
  ServerThread server(echo, options);
  RawClient client(server.port());
  client.say("GET / HTTP/1.1\r\nX: ");
  const auto start = Steady::now();
  std::string answer;
  while (answer.empty() && Steady::now() - start < 5s) {
    client.say("x");
    answer = client.hear_some(10ms);
  }
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 408 ")) << answer;
}

TEST(HttpServer, ADripOfBodyBytesIsCutAlthoughItNeverStops) {
  HttpServerOptions options;
  options.body_idle_timeout = 200ms;
  options.min_body_bytes_per_s = 100000;
  ServerThread server(echo, options);
  RawClient client(server.port());
  client.say("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n");
  const auto start = Steady::now();
  std::string answer;
  while (answer.empty() && Steady::now() - start < 5s) {
    client.say("x");
    answer = client.hear_some(10ms);
  }
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 408 ")) << answer;
}

TEST(HttpServer, ABodyAboveTheLeastRateMayTakeLongerThanTheTimeout) {
  HttpServerOptions options;
  options.body_idle_timeout = 1s;
  options.min_body_bytes_per_s = 100;
  ServerThread server(echo, options);
  RawClient client(server.port());
  client.say("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3000\r\n\r\n");
  for (int i = 0; i < 30; ++i) {
    ASSERT_TRUE(client.say(std::string(100, 'x')));
    if (i < 29) client.hear_some(50ms);
  }
  EXPECT_TRUE(client.hear_until("]").starts_with("HTTP/1.1 200 "));
}

TEST(HttpServer, RefusesBodiesBeyondWhatMayWaitAtOnceAndTakesThemAgainLater) {
  HttpServerOptions options;
  options.max_waiting_bytes = 1000;
  ServerThread server(echo, options);
  const std::string head = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 900\r\n\r\n";
  RawClient first(server.port());
  first.say(head + std::string(800, 'x'));
  RawClient second(server.port());
  std::string refused;
  EXPECT_TRUE(eventually([&] {
    RawClient other(server.port());
    other.say(head + std::string(800, 'y'));
    refused = other.hear_some(100ms);
    return !refused.empty();
  }));
  EXPECT_TRUE(refused.starts_with("HTTP/1.1 503 ")) << refused;
  first.say(std::string(100, 'x'));
  EXPECT_TRUE(first.hear_until("]").starts_with("HTTP/1.1 200 "));
  second.say(head + std::string(900, 'z'));
  EXPECT_TRUE(second.hear_until("]").starts_with("HTTP/1.1 200 ")) << "the room is there again";
}

TEST(HttpServer, RefusesConnectionsBeyondItsLimit) {
  HttpServerOptions options;
  options.max_connections = 2;
  ServerThread server(echo, options);
  RawClient first(server.port()), second(server.port());
  ASSERT_TRUE(eventually([&] { return server.server().open_connections() == 2; }));
  RawClient third(server.port());
  EXPECT_TRUE(third.hear_all(5s).starts_with("HTTP/1.1 503 "));
  first.close();
  ASSERT_TRUE(eventually([&] { return server.server().open_connections() == 1; }));
  RawClient fourth(server.port());
  fourth.say("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_TRUE(fourth.hear_until("]").ends_with("GET /? []"));
}

TEST(HttpServer, AThrowingOrForgetfulHandlerAnswers500AndTheLoopLivesOn) {
  ServerThread server([&](HttpRequest request, std::shared_ptr<ResponseWriter> writer) {
    if (request.path == "/throw") throw std::runtime_error("from the handler");
    if (request.path == "/forget") return;
    echo(std::move(request), std::move(writer));
  });
  RawClient client(server.port());
  client.say("GET /throw HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_TRUE(client.hear_until("Error").starts_with("HTTP/1.1 500 "));
  client.hear_some(10ms);
  RawClient other(server.port());
  other.say("GET /forget HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_TRUE(other.hear_until("Error").starts_with("HTTP/1.1 500 "));
  RawClient third(server.port());
  third.say("GET /fine HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_TRUE(third.hear_until("]").ends_with("GET /fine? []"));
}

TEST(HttpServer, HeaderValuesCannotBreakOutOfTheirLine) {
  ServerThread server([&](HttpRequest, std::shared_ptr<ResponseWriter> writer) {
    writer->send({200, "text/plain", "x", {{"X-Echo", "a\r\nSet-Cookie: evil"}}});
  });
  auto response = fetch({.method = "GET", .url = server.url("/")}, 5s);
  ASSERT_TRUE(response.has_value()) << response.error().message;
  for (const auto& [name, value] : response->headers) EXPECT_NE(name, "Set-Cookie");
}

TEST(HttpServer, ABodyHasRoomForTheParserBehindIt) {
  std::atomic<size_t> spare = 0, size = 0;
  ServerThread server([&](HttpRequest request, std::shared_ptr<ResponseWriter> writer) {
    size = request.body.size();
    spare = request.body.capacity() - request.body.size();
    writer->send({});
  });
  for (size_t length : {size_t(0), size_t(1), size_t(64 << 10), size_t(3'000'000)}) {
    ClientRequest request{.method = "POST", .url = server.url("/")};
    request.body = std::make_shared<const std::string>(length, 'x');
    auto response = fetch(std::move(request), 10s);
    ASSERT_TRUE(response.has_value()) << response.error().message;
    EXPECT_EQ(size, length);
    EXPECT_GE(spare, 64u);
  }
}

TEST(HttpServer, DrainAnswersWhatRunsAndRefusesWhatIsNew) {
  std::mutex mutex;
  std::shared_ptr<ResponseWriter> pending;
  std::atomic<bool> got = false;
  ServerThread server([&](HttpRequest, std::shared_ptr<ResponseWriter> writer) {
    std::lock_guard lock(mutex);
    pending = std::move(writer);
    got = true;
  });
  RawClient idle(server.port()), running(server.port());
  running.say("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
  ASSERT_TRUE(eventually([&] { return got && server.server().open_connections() == 2; }));
  server.on_loop([&] { server.server().drain(); });
  EXPECT_EQ(idle.hear_all(5s), "");
  EXPECT_FALSE(RawClient(server.port()).connected());
  pending->send({200, "text/plain", "done", {}});
  std::string answer = running.hear_all(5s);
  EXPECT_TRUE(answer.ends_with("done")) << answer;
  EXPECT_NE(answer.find("connection: close"), std::string::npos);
}

TEST(HttpServer, ListenNamesAddressAndReasonOfAFailure) {
  ServerThread server(echo);
  EventLoop loop;
  HttpServerOptions options;
  options.port = server.port();
  auto second = HttpServer::listen(loop, options, echo);
  ASSERT_FALSE(second.has_value());
  EXPECT_NE(second.error().message.find("127.0.0.1:" + std::to_string(server.port())), std::string::npos);
  EXPECT_NE(second.error().message.find("in use"), std::string::npos) << second.error().message;
}

TEST(HttpServer, AccessLogGetsRequestAndStatus) {
  std::mutex mutex;
  std::vector<std::string> lines;
  HttpServerOptions options;
  options.access_log = [&](const HttpRequest& request, int status) {
    std::lock_guard lock(mutex);
    lines.push_back(request.method + " " + request.path + " " + std::to_string(status));
  };
  ServerThread server(
      [&](HttpRequest, std::shared_ptr<ResponseWriter> writer) {
        writer->send({404, "text/plain", "", {}});
      },
      options);
  auto response = fetch({.method = "GET", .url = server.url("/x")}, 5s);
  ASSERT_TRUE(response.has_value());
  EXPECT_TRUE(eventually([&] {
    std::lock_guard lock(mutex);
    return lines == std::vector<std::string>{"GET /x 404"};
  }));
}

}  // namespace
}  // namespace tandem::net
