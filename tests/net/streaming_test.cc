// Streams out of the server: hang-ups, back-pressure, coalescing, many at once.
#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <vector>

#include "tests/net/support.h"

namespace tandem::net {
namespace {

using testing::eventually;
using testing::RawClient;
using testing::ServerThread;
using testing::Steady;
using namespace std::chrono_literals;

const std::string kGet = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";

// Keeps every writer, so that a test decides when and what is answered.
struct Keeper {
  std::mutex mutex;
  std::vector<std::shared_ptr<ResponseWriter>> writers;
  std::atomic<int> arrived = 0, closed = 0;
  std::atomic<Steady::rep> closed_at = 0;

  HttpHandler handler() {
    return [this](HttpRequest, std::shared_ptr<ResponseWriter> writer) {
      writer->on_closed([this] {
        closed_at = Steady::now().time_since_epoch().count();
        ++closed;
      });
      std::lock_guard lock(mutex);
      writers.push_back(std::move(writer));
      ++arrived;
    };
  }
  std::shared_ptr<ResponseWriter> writer(size_t index) {
    std::lock_guard lock(mutex);
    return writers.at(index);
  }
};

// A server whose one request has arrived and waits for its answer.
struct OneRequest {
  explicit OneRequest(const std::string& request = kGet) {
    client.say(request);
    EXPECT_TRUE(eventually([&] { return keeper.arrived == 1; }));
  }

  Keeper keeper;
  ServerThread server{keeper.handler()};
  RawClient client{server.port()};
};

enum class Leave { kClose, kHalfClose, kReset };

class HangUp : public ::testing::TestWithParam<std::pair<Leave, bool>> {
 protected:
  // How long the server's writer took to know that its client has left.
  static Duration time_until_told(Leave leave, bool streaming) {
    OneRequest one;
    auto& [keeper, server, client] = one;
    auto writer = keeper.writer(0);
    if (streaming) {
      writer->begin(200, "text/event-stream", {});
      EXPECT_TRUE(writer->write("data: 1\n\n"));
      client.hear_until("data: 1");
    }
    EXPECT_FALSE(writer->closed());
    const auto left_at = Steady::now();
    if (leave == Leave::kClose) client.close();
    if (leave == Leave::kHalfClose) client.half_close();
    if (leave == Leave::kReset) client.reset();
    EXPECT_TRUE(eventually([&] { return keeper.closed == 1; }));
    EXPECT_TRUE(writer->closed());
    EXPECT_FALSE(writer->write("more"));
    EXPECT_TRUE(eventually([&] { return server.server().open_connections() == 0; }));
    return Steady::duration(keeper.closed_at - left_at.time_since_epoch().count());
  }
};

TEST_P(HangUp, IsToldWithin100MsWhileTheAnswerIsPendingOrStreamed) {
  const auto [leave, streaming] = GetParam();
  // A busy machine makes one slow; a server that looks only now and then is slow in most.
  Duration fastest = Duration::max();
  for (int i = 0; i < 10 && fastest >= 100ms; ++i) fastest = std::min(fastest, time_until_told(leave, streaming));
  EXPECT_LT(fastest, 100ms);
}

INSTANTIATE_TEST_SUITE_P(All, HangUp,
                         ::testing::Values(std::pair(Leave::kClose, false), std::pair(Leave::kClose, true),
                                           std::pair(Leave::kHalfClose, false), std::pair(Leave::kHalfClose, true),
                                           std::pair(Leave::kReset, false), std::pair(Leave::kReset, true)));

TEST(Streaming, OnClosedSetAfterTheHangUpIsStillCalled) {
  OneRequest one;
  auto& [keeper, server, client] = one;
  client.close();
  ASSERT_TRUE(eventually([&] { return keeper.closed == 1; }));
  std::atomic<bool> told = false;
  keeper.writer(0)->on_closed([&] { told = true; });
  EXPECT_TRUE(eventually([&] { return told.load(); }));
}

TEST(Streaming, ACompleteAnswerIsNotAHangUp) {
  OneRequest one;
  auto& [keeper, server, client] = one;
  keeper.writer(0)->send({200, "text/plain", "all", {}});
  client.hear_until("all");
  client.close();
  ASSERT_TRUE(eventually([&] { return server.server().open_connections() == 0; }));
  EXPECT_EQ(keeper.closed, 0);
}

TEST(Streaming, ManySmallWritesLeaveInFewPieces) {
  OneRequest one;
  auto& [keeper, server, client] = one;
  auto writer = keeper.writer(0);
  // While the loop is busy here, writers on this thread only fill the backlog.
  server.on_loop([&] {
    writer->begin(200, "text/event-stream", {});
    for (int i = 0; i < 1000; ++i) ASSERT_TRUE(writer->write("data: x\n\n"));
    EXPECT_EQ(writer->backlog(), 9000u);
    writer->end();
  });
  std::string answer = client.hear_until("\r\n0\r\n\r\n");
  EXPECT_EQ(testing::count_of(answer, "data: x\n\n"), 1000);
  EXPECT_NE(answer.find("\r\n2328\r\n"), std::string::npos) << "one chunk of 9,000 bytes: " << answer.substr(0, 300);
  EXPECT_TRUE(eventually([&] { return writer->backlog() == 0; }));
}

TEST(Streaming, AClientThatDoesNotReadIsClosedAtTheBacklogLimit) {
  Keeper keeper;
  HttpServerOptions options;
  options.max_stream_backlog = 1 << 20;
  ServerThread server(keeper.handler(), options);
  RawClient client(server.port());
  client.say(kGet);
  ASSERT_TRUE(eventually([&] { return keeper.arrived == 1; }));
  auto writer = keeper.writer(0);
  writer->begin(200, "text/event-stream", {});
  const std::string piece(10000, 'x');
  size_t accepted = 0, highest = 0;
  while (writer->write(piece)) {
    accepted += piece.size();
    highest = std::max(highest, writer->backlog());
    ASSERT_LT(accepted, size_t(1) << 30) << "the bound does not hold";
  }
  EXPECT_LE(highest, options.max_stream_backlog);
  EXPECT_TRUE(eventually([&] { return keeper.closed == 1; }));
  EXPECT_FALSE(writer->write("more"));
}

TEST(Streaming, AStalledReaderIsClosedAfterItsDeadline) {
  Keeper keeper;
  HttpServerOptions options;
  options.write_stall_timeout = 50ms;
  ServerThread server(keeper.handler(), options);
  RawClient client(server.port());
  client.say(kGet);
  ASSERT_TRUE(eventually([&] { return keeper.arrived == 1; }));
  auto writer = keeper.writer(0);
  writer->begin(200, "text/event-stream", {});
  writer->write(std::string(32 << 20, 'x'));  // more than the socket buffers of both sides hold
  EXPECT_TRUE(eventually([&] { return keeper.closed == 1; }));
}

TEST(Streaming, AStreamWhoseWriterIsDroppedIsCutNotEnded) {
  OneRequest one;
  auto& [keeper, server, client] = one;
  keeper.writer(0)->begin(200, "text/event-stream", {});
  keeper.writer(0)->write("data: 1\n\n");
  client.hear_until("data: 1\n\n");
  {
    std::lock_guard lock(keeper.mutex);
    keeper.writers.clear();
  }
  EXPECT_EQ(client.hear_all(5s).find("0\r\n\r\n"), std::string::npos);
}

TEST(Streaming, AnHttp10ClientGetsAStreamWithoutChunks) {
  OneRequest one("GET / HTTP/1.0\r\n\r\n");
  auto& [keeper, server, client] = one;
  keeper.writer(0)->begin(200, "text/plain", {});
  keeper.writer(0)->write("abc");
  keeper.writer(0)->end();
  std::string answer = client.hear_all(5s);
  EXPECT_TRUE(answer.ends_with("\r\n\r\nabc")) << answer;
  EXPECT_EQ(answer.find("transfer-encoding"), std::string::npos);
}

TEST(Streaming, WritersOnOtherThreadsKeepTheirOrder) {
  Keeper keeper;
  ServerThread server(keeper.handler());
  constexpr int kStreams = 8, kEvents = 500;
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < kStreams; ++i) {
    clients.push_back(std::make_unique<RawClient>(server.port()));
    clients.back()->say(kGet);
  }
  ASSERT_TRUE(eventually([&] { return keeper.arrived == kStreams; }));
  std::vector<std::jthread> threads;
  for (int i = 0; i < kStreams; ++i) {
    threads.emplace_back([&, i] {
      auto writer = keeper.writer(i);
      writer->begin(200, "text/event-stream", {});
      for (int k = 0; k < kEvents; ++k) writer->write("<" + std::to_string(k) + ">");
      writer->end();
    });
  }
  for (auto& client : clients) {
    std::string answer = client->hear_until("0\r\n\r\n");
    size_t at = 0;
    for (int k = 0; k < kEvents; ++k) {
      at = answer.find("<" + std::to_string(k) + ">", at);
      ASSERT_NE(at, std::string::npos) << k;
    }
  }
}

TEST(Streaming, AThousandConcurrentStreamsAreComplete) {
  constexpr int kStreams = 1000, kEvents = 20;
  Keeper keeper;
  ServerThread server(keeper.handler());
  testing::LoopThread clients;
  std::unique_ptr<HttpClient> client;
  std::vector<std::shared_ptr<ClientCall>> calls;
  std::vector<std::string> bodies(kStreams);
  std::atomic<int> done = 0, failed = 0;
  clients.on_loop([&] {
    client = std::make_unique<HttpClient>(clients.loop());
    for (int i = 0; i < kStreams; ++i) {
      ClientHandlers handlers;
      handlers.on_body = [&bodies, i](std::string_view bytes) { bodies[i].append(bytes); };
      handlers.on_done = [&](Status status) {
        if (!status) ++failed;
        ++done;
      };
      calls.push_back(client->start({.method = "GET", .url = server.url("/")}, std::move(handlers)));
    }
  });
  ASSERT_TRUE(eventually([&] { return keeper.arrived == kStreams; }, 60s)) << keeper.arrived;
  std::string expected;
  for (int i = 0; i < kStreams; ++i) keeper.writer(i)->begin(200, "text/event-stream", {});
  for (int k = 0; k < kEvents; ++k) {
    expected += "data: " + std::to_string(k) + "\n\n";
    for (int i = 0; i < kStreams; ++i) ASSERT_TRUE(keeper.writer(i)->write("data: " + std::to_string(k) + "\n\n"));
  }
  for (int i = 0; i < kStreams; ++i) keeper.writer(i)->end();
  EXPECT_TRUE(eventually([&] { return done == kStreams; }, 60s)) << done;
  EXPECT_EQ(failed, 0);
  for (int i = 0; i < kStreams; ++i) EXPECT_EQ(bodies[i], expected) << i;
  clients.on_loop([&] {
    calls.clear();
    client.reset();
  });
}

TEST(Streaming, AWriterMayOutliveItsServerAndLoop) {
  Keeper keeper;
  auto server = std::make_unique<ServerThread>(keeper.handler());
  RawClient client(server->port());
  client.say(kGet);
  ASSERT_TRUE(eventually([&] { return keeper.arrived == 1; }));
  server.reset();
  auto writer = keeper.writer(0);
  EXPECT_TRUE(writer->closed());
  writer->begin(200, "text/plain", {});
  EXPECT_FALSE(writer->write("x"));
  writer->on_closed([] {});
  EXPECT_EQ(keeper.closed, 0) << "the server went, not the client";
}

}  // namespace
}  // namespace tandem::net
