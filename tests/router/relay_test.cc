// One request's way through the router to a prefill and a decode server, and every way it can fail.
#include "tests/router/support.h"

namespace tandem::router {
namespace {

using net::testing::RawClient;
using testing::answers;
using testing::at;
using testing::eventually;
using testing::FakeInstance;
using testing::HttpRequest;
using testing::quick_config;
using testing::RouterThread;
using testing::Writer;
using namespace std::chrono_literals;

struct Fleet {
  explicit Fleet(int prefills, int decodes, RouterConfig config = quick_config()) {
    for (int i = 0; i < prefills; ++i) add(prefill, config, Role::kPrefill, R"({"leg":"prefill"})");
    for (int i = 0; i < decodes; ++i) add(decode, config, Role::kDecode, R"({"leg":"decode"})");
    router = std::make_unique<RouterThread>(std::move(config));
    EXPECT_TRUE(router->wait_ready());
    EXPECT_TRUE(eventually([&] {
      return at(router->ask("GET", "/readiness").body, "/healthy_workers") == std::to_string(prefills + decodes);
    }));
  }
  void add(std::vector<std::unique_ptr<FakeInstance>>& side, RouterConfig& config, Role role, std::string answer) {
    side.push_back(std::make_unique<FakeInstance>(answers(200, answer)));
    InstanceAddress address{side.back()->url(), role, {}};
    if (role == Role::kPrefill) address.bootstrap_port = 8998;
    config.instances.push_back(address);
  }
  net::HttpResponse generate(std::string body, std::string path = "/generate") {
    return router->ask("POST", std::move(path), std::move(body), {{"Content-Type", "application/json"}});
  }
  std::vector<std::unique_ptr<FakeInstance>> prefill, decode;
  std::unique_ptr<RouterThread> router;
};

// Says what a stream of these events looks like.
FakeInstance::Serve streams(std::vector<std::string> pieces) {
  return [pieces](const HttpRequest&, const Writer& writer) {
    writer->begin(200, "text/event-stream; charset=utf-8", {});
    for (const auto& piece : pieces) writer->write(piece);
    writer->end();
  };
}

void post(RawClient& client, std::string body) {
  client.say("POST /generate HTTP/1.1\r\nHost: h\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
             body);
}

FakeInstance::Serve waits(FakeInstance& instance) {
  return [keeper = &instance](const HttpRequest&, const Writer& writer) { keeper->keep(writer); };
}

TEST(Relay, SendsTheSameBodyWithOneRoomToBothLegsAndReturnsDecodesAnswer) {
  Fleet fleet(1, 1);
  auto response = fleet.generate(R"({"text":"hi","sampling_params":{"temperature":0}})");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.body, R"({"leg":"decode"})");
  const std::string body = fleet.decode[0]->only().body;
  EXPECT_EQ(body, fleet.prefill[0]->only().body);
  EXPECT_TRUE(body.starts_with(R"({"text":"hi","sampling_params":{"temperature":0},"bootstrap_host":"127.0.0.1",)"))
      << body;
  EXPECT_EQ(at(body, "/bootstrap_port"), "8998");
  const uint64_t room = std::stoull(at(body, "/bootstrap_room"));
  EXPECT_LT(room, uint64_t(1) << 63);
  fleet.generate(R"({"text":"hi"})");
  EXPECT_NE(at(fleet.decode[0]->requests()[1].body, "/bootstrap_room"), std::to_string(room));
}

TEST(Relay, AddsArraysForABatchAndForChatWithSeveralChoices) {
  Fleet fleet(1, 1);
  fleet.generate(R"({"text":["a","b","c"]})");
  fleet.generate(R"({"messages":[],"n":2})", "/v1/chat/completions");
  fleet.generate(R"({"prompt":["a","b"]})", "/v1/completions");
  auto requests = fleet.decode[0]->requests();
  ASSERT_EQ(requests.size(), 3u);
  EXPECT_EQ(at(requests[0].body, "/bootstrap_host"), R"(["127.0.0.1","127.0.0.1","127.0.0.1"])");
  EXPECT_EQ(at(requests[0].body, "/bootstrap_port"), "[8998,8998,8998]");
  EXPECT_NE(at(requests[0].body, "/bootstrap_room/0"), at(requests[0].body, "/bootstrap_room/1"));
  EXPECT_EQ(at(requests[1].body, "/bootstrap_port"), "[8998,8998]");
  EXPECT_EQ(requests[1].path, "/v1/chat/completions");
  EXPECT_EQ(at(requests[2].body, "/bootstrap_port"), "[8998,8998]");
}

TEST(Relay, ForwardsTracingAndAuthorizationHeadersOnly) {
  Fleet fleet(1, 1);
  fleet.router->ask(
      "POST", "/generate", R"({"text":"a"})",
      {{"Authorization", "Bearer k"}, {"X-Request-Id", "r1"}, {"traceparent", "t"}, {"Cookie", "secret"}});
  const HttpRequest request = fleet.decode[0]->only();
  ASSERT_TRUE(request.header("authorization") && request.header("x-request-id") && request.header("traceparent"));
  EXPECT_EQ(*request.header("authorization"), "Bearer k");
  EXPECT_EQ(request.header("cookie"), nullptr);
}

TEST(Relay, PassesAStreamOnByteForByteAsItComes) {
  Fleet fleet(1, 1);
  fleet.decode[0]->set(waits(*fleet.decode[0]));
  RawClient client(fleet.router->port());
  post(client, "{\"text\":\"a\",\"stream\":true}");
  auto writer = fleet.decode[0]->kept(0);
  ASSERT_TRUE(writer);
  writer->begin(200, "text/event-stream; charset=utf-8", {{"X-From", "decode"}});
  std::string all;
  // Cut at places that no event parser would like.
  for (std::string piece : {"data: {\"te", "xt\":\"\xe4\xb8", "\x96\"}\n\nda", "ta: [DONE]\n\n"}) {
    writer->write(piece);
    all += client.hear_until(piece.substr(piece.size() - 2));
  }
  writer->end();
  all += client.hear_until("0\r\n\r\n");
  EXPECT_NE(all.find("content-type: text/event-stream; charset=utf-8"), std::string::npos) << all;
  EXPECT_NE(all.find("X-From: decode"), std::string::npos);
  for (const char* piece : {"data: {\"te", "xt\":\"\xe4\xb8", "\x96\"}\n\nda", "ta: [DONE]\n\n"}) {
    EXPECT_NE(all.find(piece), std::string::npos) << piece;
  }
}

TEST(Relay, StreamsArriveIdenticalForManyClientsAtOnce) {
  Fleet fleet(2, 2);
  std::vector<std::string> pieces;
  std::string expected;
  for (int i = 0; i < 50; ++i) {
    pieces.push_back("data: {\"i\":" + std::to_string(i) + "}\n\n");
    expected += pieces.back();
  }
  for (auto& decode : fleet.decode) decode->set(streams(pieces));
  std::vector<std::jthread> clients;
  std::atomic<int> same = 0;
  for (int i = 0; i < 20; ++i) {
    clients.emplace_back([&] { same += fleet.generate(R"({"text":"a","stream":true})").body == expected; });
  }
  clients.clear();
  EXPECT_EQ(same, 20);
  EXPECT_EQ(fleet.decode[0]->count(), 10u) << "round robin";
  EXPECT_TRUE(eventually([&] { return fleet.prefill[1]->count() == 10; })) << "a decode answer may come before";
}

TEST(Relay, DpAwareChoosesRoomsByTheLeastLoadedRankOfTheDecodeServer) {
  RouterConfig config = quick_config();
  config.dp_aware = true;
  Fleet fleet(1, 1, config);
  EXPECT_EQ(fleet.generate(R"({"text":"a"})").status, 200);
  const auto says_four = [](const HttpRequest& request, const Writer& writer) {
    writer->send({200, "application/json", request.path == "/get_server_info" ? R"({"dp_size":4})" : "{}", {}});
  };
  // Down and up again: an instance that comes back is asked anew.
  fleet.decode[0]->set(says_four);
  fleet.decode[0]->healthy = false;
  ASSERT_TRUE(eventually([&] { return fleet.router->ask("GET", "/readiness").status == 503; }));
  fleet.decode[0]->healthy = true;
  ASSERT_TRUE(eventually([&] { return fleet.router->ask("GET", "/readiness").status == 200; }));
  ASSERT_TRUE(eventually([&] {
    fleet.generate(R"({"input_ids":[[1],[2],[3],[4],[5]]})");
    const std::string body = fleet.decode[0]->requests().back().body;
    std::vector<uint64_t> ranks;
    for (int i = 0; i < 5; ++i) ranks.push_back(std::stoull(at(body, "/bootstrap_room/" + std::to_string(i))) % 4);
    return ranks == std::vector<uint64_t>{0, 1, 2, 3, 0};
  }));
}

TEST(Relay, AFailingPrefillIsRetriedOnAnotherPairWithAnotherRoom) {
  Fleet fleet(2, 1);
  fleet.prefill[0]->set(answers(500, "out of luck"));
  fleet.decode[0]->set(waits(*fleet.decode[0]));
  std::jthread second([&] {
    auto writer = fleet.decode[0]->kept(1);
    if (writer) writer->send({200, "application/json", R"("second")", {}});
  });
  auto response = fleet.generate(R"({"text":"a"})");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.body, R"("second")");
  EXPECT_TRUE(eventually([&] { return fleet.decode[0]->hang_ups == 1; })) << "the first decode leg was cancelled";
  auto requests = fleet.decode[0]->requests();
  ASSERT_EQ(requests.size(), 2u);
  EXPECT_NE(at(requests[0].body, "/bootstrap_room"), at(requests[1].body, "/bootstrap_room"));
  EXPECT_EQ(fleet.prefill[0]->count(), 1u);
  EXPECT_TRUE(eventually([&] { return fleet.prefill[1]->count() == 1; })) << "the failed one is avoided";
}

TEST(Relay, APrefillThatKeepsFailingIsToldWithStatusAndMessageAfterAllAttempts) {
  Fleet fleet(1, 1);
  fleet.prefill[0]->set(answers(503, "prefill is full"));
  fleet.decode[0]->set(waits(*fleet.decode[0]));
  auto response = fleet.generate(R"({"text":"a","stream":true})");
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(at(response.body, "/error/message"), R"("Prefill server error (503): prefill is full")");
  EXPECT_EQ(fleet.prefill[0]->count(), 5u);
  EXPECT_TRUE(eventually([&] { return fleet.decode[0]->hang_ups == 5; }));
}

TEST(Relay, AClientsFaultIsPassedOnOnceAndUnchanged) {
  Fleet fleet(1, 1);
  const std::string error = R"({"error":{"message":"max_new_tokens is negative"}})";
  fleet.prefill[0]->set(answers(400, error));
  fleet.decode[0]->set(waits(*fleet.decode[0]));
  auto response = fleet.generate(R"({"text":"a"})");
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(response.body, error);
  EXPECT_EQ(fleet.prefill[0]->count(), 1u);
  EXPECT_TRUE(eventually([&] { return fleet.decode[0]->hang_ups == 1; }));
}

TEST(Relay, APrefillThatRefusesInItsStreamEndsTheRequestWithoutWaitingForDecode) {
  Fleet fleet(1, 1);
  const std::string events = "data: {\"error\": {\"message\": \"too long\"}}\n\ndata: [DONE]\n\n";
  fleet.prefill[0]->set(streams({events}));
  fleet.decode[0]->set(waits(*fleet.decode[0]));
  auto response = fleet.generate(R"({"text":"a","stream":true})");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.body, events);
  EXPECT_TRUE(eventually([&] { return fleet.decode[0]->hang_ups == 1; }));
}

TEST(Relay, AStreamThatALeavingDecodeHandsBackIsGivenByAnother) {
  const std::pair<const char*, const char*> words[] = {
      {"/generate",
       "data: {\"text\":\"\",\"meta_info\":{\"finish_reason\":{\"type\":\"abort\",\"message\":\"The server is shutting "
       "down.\",\"status_code\":503,\"err_type\":null}}}\n\n"},
      {"/v1/completions",
       "data: {\"error\":{\"object\":\"error\",\"message\":\"The server is shutting "
       "down.\",\"type\":\"503\",\"param\":null,\"code\":503}}\n\n"}};
  for (const auto& [path, handed_back] : words) {
    Fleet fleet(1, 2);
    auto calls = std::make_shared<std::atomic<int>>(0);
    for (const auto& decode : fleet.decode) {
      decode->set([calls, leaving = streams({handed_back, "data: [DONE]\n\n"}),
                   other = streams({"data: {\"text\":\"whole\"}\n\n", "data: [DONE]\n\n"})](const HttpRequest& request,
                                                                                            const Writer& writer) {
        (calls->fetch_add(1) == 0 ? leaving : other)(request, writer);
      });
    }
    auto response = fleet.generate(R"({"text":"a","prompt":"a","stream":true})", path);
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(response.body, "data: {\"text\":\"whole\"}\n\ndata: [DONE]\n\n");
    EXPECT_EQ(fleet.decode[0]->requests().size(), 1u);
    EXPECT_EQ(fleet.decode[1]->requests().size(), 1u);
  }
}

TEST(Relay, AnUnreachableDecodeIsReplacedAndIsA502WhenThereIsNoOther) {
  Fleet fleet(1, 2);
  fleet.decode[0]->stop();
  for (int i = 0; i < 4; ++i) EXPECT_EQ(fleet.generate(R"({"text":"a"})").status, 200);
  EXPECT_TRUE(eventually([&] { return at(fleet.router->ask("GET", "/readiness").body, "/decode_count") == "1"; }))
      << "health checks take it out";
  RouterConfig patient = quick_config();
  patient.health.failure_threshold = 1000;
  Fleet lonely(1, 1, patient);
  lonely.decode[0]->stop();
  auto response = lonely.generate(R"({"text":"a"})");
  EXPECT_EQ(response.status, 502);
  EXPECT_NE(response.body.find("Decode server error"), std::string::npos) << response.body;
}

TEST(Relay, WithoutAHealthyPairItIs503ThatSaysSo) {
  Fleet fleet(1, 1);
  fleet.prefill[0]->healthy = false;
  ASSERT_TRUE(eventually([&] { return fleet.router->ask("GET", "/health").status == 503; }));
  auto response = fleet.generate(R"({"text":"a"})");
  EXPECT_EQ(response.status, 503);
  EXPECT_NE(response.body.find("No available servers"), std::string::npos);
  response = fleet.generate(R"({"messages":[]})", "/v1/chat/completions");
  EXPECT_EQ(at(response.body, "/code"), "503") << "in OpenAI's form: " << response.body;
  fleet.prefill[0]->healthy = true;
  EXPECT_TRUE(fleet.router->wait_ready());
  EXPECT_EQ(fleet.generate(R"({"text":"a"})").status, 200);
}

TEST(Relay, AStreamThatDecodeCutsEndsWithAnErrorEvent) {
  Fleet fleet(1, 1);
  fleet.decode[0]->set([](const HttpRequest&, const Writer& writer) {
    writer->begin(200, "text/event-stream", {});
    writer->write("data: {\"text\":\"half\"}\n\ndata: {\"te");
    // Dropped without an end once the bytes are out.
    writer->on_drained([kept = Writer(writer)]() mutable { kept.reset(); });
  });
  auto response = fleet.generate(R"({"text":"a","stream":true})");
  EXPECT_TRUE(response.body.starts_with("data: {\"text\":\"half\"}\n\ndata: {\"te\n\ndata: {\"error\""))
      << response.body;
  EXPECT_TRUE(response.body.ends_with("\n\ndata: [DONE]\n\n"));
  EXPECT_EQ(fleet.decode[0]->count(), 1u) << "nothing is retried after the first byte";
}

// From the client's hang-up until both servers know of it.
Duration time_until_both_legs_end(bool streaming) {
  Fleet fleet(1, 1);
  fleet.prefill[0]->set(waits(*fleet.prefill[0]));
  fleet.decode[0]->set(waits(*fleet.decode[0]));
  RawClient client(fleet.router->port());
  post(client, "{\"text\":\"a\",\"stream\":true}");
  EXPECT_TRUE(fleet.prefill[0]->kept(0) && fleet.decode[0]->kept(0));
  if (streaming) {
    fleet.decode[0]->kept(0)->begin(200, "text/event-stream", {});
    fleet.decode[0]->kept(0)->write("data: 1\n\n");
    client.hear_until("data: 1\n\n");
  }
  const auto left_at = net::testing::Steady::now();
  client.close();
  EXPECT_TRUE(eventually([&] { return fleet.prefill[0]->hang_ups == 1 && fleet.decode[0]->hang_ups == 1; }));
  const Duration took = net::testing::Steady::now() - left_at;
  EXPECT_TRUE(eventually([&] { return fleet.router->running() == 0; }));
  EXPECT_EQ(fleet.prefill[0]->count(), 1u);
  return took;
}

TEST(Relay, AClientThatHangsUpCancelsBothLegsAtOnce) {
  for (const bool streaming : {false, true}) {
    // A busy machine makes one slow; a router that looks only now and then is slow in most.
    Duration fastest = Duration::max();
    for (int i = 0; i < 10 && fastest >= 500ms; ++i) fastest = std::min(fastest, time_until_both_legs_end(streaming));
    EXPECT_LT(fastest, 500ms);
  }
}

TEST(Relay, MergesThePromptsLogprobsFromPrefill) {
  Fleet fleet(1, 1);
  fleet.prefill[0]->set(answers(200, R"({"meta_info":{"input_token_logprobs":[[null,5,null]]}})"));
  fleet.decode[0]->set(answers(200, R"({"text":"x","meta_info":{"input_token_logprobs":[]}})"));
  EXPECT_EQ(fleet.generate(R"({"text":"a","return_logprob":true})").body,
            R"({"text":"x","meta_info":{"input_token_logprobs":[[null,5,null]]}})");
  EXPECT_EQ(fleet.generate(R"({"text":"a"})").body, R"({"text":"x","meta_info":{"input_token_logprobs":[]}})");
}

TEST(Relay, MergesLogprobsInAStreamAlsoWhenPrefillIsLate) {
  Fleet fleet(1, 1);
  fleet.prefill[0]->set(waits(*fleet.prefill[0]));
  fleet.decode[0]->set(streams({"data: {\"meta_info\":{\"input_token", "_logprobs\":[]}}\n\ndata: [DONE]\n\n"}));
  std::jthread late([&] {
    auto writer = fleet.prefill[0]->kept(0);
    if (!writer || !eventually([&] { return fleet.decode[0]->count() == 1; })) return;
    writer->begin(200, "text/event-stream", {});
    writer->write("data: {\"meta_info\":{\"input_token_logprobs\":[[-1.5,5,null]]}}\n\ndata: [DONE]\n\n");
    writer->end();
  });
  EXPECT_EQ(fleet.generate(R"({"text":"a","return_logprob":true,"stream":true})").body,
            "data: {\"meta_info\":{\"input_token_logprobs\":[[-1.5,5,null]]}}\n\ndata: [DONE]\n\n");
}

TEST(Relay, ASlowClientPausesItsDecodeStreamAndLosesNothing) {
  RouterConfig config = quick_config();
  config.stream_high_water = 256 << 10;
  Fleet fleet(1, 1, config);
  fleet.decode[0]->set(waits(*fleet.decode[0]));
  RawClient client(fleet.router->port());
  post(client, "{\"text\":\"a\",\"stream\":true}");
  auto writer = fleet.decode[0]->kept(0);
  ASSERT_TRUE(writer);
  writer->begin(200, "text/event-stream", {});
  const std::string piece(1 << 20, 'x');
  size_t sent = 0;
  // Kernel buffers of two hops and the router's bound fill up; then it is decode's own backlog that grows.
  ASSERT_TRUE(eventually([&] {
    if (writer->backlog() < 8 * piece.size() && writer->write(piece)) sent += piece.size();
    return writer->backlog() >= 8 * piece.size();
  }));
  writer->end();
  const std::string all = client.hear_until("\r\n0\r\n\r\n");
  const std::string body = all.substr(all.find("\r\n\r\n"));
  EXPECT_EQ(size_t(std::count(body.begin(), body.end(), 'x')), sent);
}

TEST(Relay, ARequestThatTakesTooLongIs504) {
  RouterConfig config = quick_config();
  config.request_timeout = 100ms;
  Fleet fleet(1, 1, config);
  fleet.decode[0]->set(waits(*fleet.decode[0]));
  auto response = fleet.generate(R"({"text":"a"})");
  EXPECT_EQ(response.status, 504);
  EXPECT_TRUE(eventually([&] { return fleet.decode[0]->hang_ups == 1; }));
}

TEST(Relay, BadJsonIs400AndNoServerSeesIt) {
  Fleet fleet(1, 1);
  for (const char* body : {"{\"text\":", "[1]", "nonsense"}) {
    auto response = fleet.generate(body);
    EXPECT_EQ(response.status, 400);
    EXPECT_EQ(at(response.body, "/object"), "\"error\"") << response.body;
  }
  EXPECT_EQ(fleet.prefill[0]->count() + fleet.decode[0]->count(), 0u);
}

TEST(Relay, LimitsConcurrencyWithAQueueThat429s) {
  RouterConfig config = quick_config();
  config.max_concurrent_requests = 1;
  config.queue_size = 1;
  config.queue_timeout = 60s;
  Fleet fleet(1, 1, config);
  fleet.decode[0]->set(waits(*fleet.decode[0]));
  std::atomic<int> first = 0;
  std::jthread a([&] { first = fleet.generate(R"({"text":"a"})").status; });
  auto writer = fleet.decode[0]->kept(0);
  RawClient leaves(fleet.router->port());
  post(leaves, "{\"text\":\"b\"}");
  ASSERT_TRUE(eventually([&] { return fleet.router->running() == 2; }));
  const net::HttpResponse refused = fleet.generate(R"({"text":"c"})");
  EXPECT_EQ(refused.status, 429);
  EXPECT_TRUE(std::any_of(refused.headers.begin(), refused.headers.end(),
                          [](const auto& header) { return net::equals_ignoring_case(header.first, "retry-after"); }));
  leaves.close();
  ASSERT_TRUE(eventually([&] { return fleet.router->running() == 1; })) << "who hangs up in the queue leaves it";
  writer->send({200, "application/json", "{}", {}});
  EXPECT_TRUE(eventually([&] { return first == 200; }));
  EXPECT_EQ(fleet.decode[0]->count(), 1u);
}

TEST(Relay, ARequestThatWaitsTooLongInTheQueueIs408) {
  RouterConfig config = quick_config();
  config.max_concurrent_requests = 1;
  config.queue_size = 1;
  config.queue_timeout = 50ms;
  Fleet fleet(1, 1, config);
  fleet.decode[0]->set(waits(*fleet.decode[0]));
  std::atomic<int> first = 0;
  std::jthread a([&] { first = fleet.generate(R"({"text":"a"})").status; });
  auto writer = fleet.decode[0]->kept(0);
  EXPECT_EQ(fleet.generate(R"({"text":"b"})").status, 408);
  writer->send({200, "application/json", "{}", {}});
  EXPECT_TRUE(eventually([&] { return first == 200; }));
  EXPECT_EQ(fleet.decode[0]->count(), 1u);
}

TEST(Relay, AnOpenBreakerKeepsRequestsAway) {
  RouterConfig config = quick_config();
  config.breaker.failure_threshold = 3;
  config.retry.enabled = false;
  Fleet fleet(1, 2, config);
  fleet.decode[0]->set(answers(500, "broken"));
  int failed = 0;
  for (int i = 0; i < 20; ++i) failed += fleet.generate(R"({"text":"a"})").status == 500;
  EXPECT_EQ(failed, 3);
  EXPECT_NE(fleet.router->ask("GET", "/workers").body.find(R"("circuit_breaker":"open")"), std::string::npos);
}

TEST(Relay, DrainRefusesNewRequestsAndTheRestGoesOn) {
  Fleet fleet(1, 1);
  fleet.decode[0]->set(waits(*fleet.decode[0]));
  std::atomic<int> status = 0;
  std::jthread client([&] { status = fleet.generate(R"({"text":"a"})").status; });
  auto writer = fleet.decode[0]->kept(0);
  fleet.router->on_loop([&] { fleet.router->router().drain(); });
  EXPECT_EQ(fleet.generate(R"({"text":"b"})").status, 503);
  writer->send({200, "application/json", "{}", {}});
  EXPECT_TRUE(eventually([&] { return status == 200 && fleet.router->running() == 0; }));
}

TEST(Relay, ARouterThatGoesCutsItsRequestsAndItsLegs) {
  Fleet fleet(1, 1);
  fleet.prefill[0]->set(waits(*fleet.prefill[0]));
  fleet.decode[0]->set(waits(*fleet.decode[0]));
  RawClient client(fleet.router->port());
  post(client, "{\"text\":\"a\"}");
  ASSERT_TRUE(fleet.prefill[0]->kept(0) && fleet.decode[0]->kept(0));
  fleet.router.reset();
  client.hear_all(5s);
  EXPECT_TRUE(eventually([&] { return fleet.prefill[0]->hang_ups == 1 && fleet.decode[0]->hang_ups == 1; }));
}

TEST(Relay, PlainServersGetTheRequestAsItIs) {
  FakeInstance a(answers(200, R"("a")")), b(answers(200, R"("b")"));
  RouterConfig config = quick_config();
  config.disaggregated = false;
  config.instances = {{a.url(), Role::kPlain, {}}, {b.url(), Role::kPlain, {}}};
  RouterThread router(config);
  ASSERT_TRUE(eventually([&] { return at(router.ask("GET", "/readiness").body, "/healthy_workers") == "2"; }));
  const std::string body = R"({"text":["x","y"],"return_logprob":true})";
  EXPECT_NE(router.ask("POST", "/generate", body).body, router.ask("POST", "/generate", body).body);
  EXPECT_EQ(a.only().body, body);
  EXPECT_EQ(b.only().body, body);
  a.set(answers(503, "full"));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(router.ask("POST", "/generate", body).body, R"("b")");
}

}  // namespace
}  // namespace tandem::router
