// The clients of the control endpoints: which servers they mean, and one request to all of them.
#include "app/fan_out.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>

#include "tests/net/support.h"

namespace tandem::app {
namespace {

using net::testing::ServerThread;

std::string origin(ServerThread& server) { return fmt::format("http://127.0.0.1:{}", server.port()); }

net::HttpHandler answering(int status, std::string body) {
  return [status, body](net::HttpRequest, std::shared_ptr<net::ResponseWriter> writer) {
    net::HttpResponse response;
    response.status = status;
    response.body = body;
    writer->send(std::move(response));
  };
}

FlagValues parsed(std::vector<std::string> args) {
  auto outcome = parse_flags("test", "", with_target_flags({}, "decode"), args);
  EXPECT_TRUE(outcome) << (outcome ? "" : outcome.error().message);
  return outcome->values;
}

constexpr const char* kWorkers =
    R"({"workers": [{"url": "http://10.0.0.1:30000", "worker_type": "prefill"},
                    {"url": "http://10.0.0.3:30000", "worker_type": "decode"},
                    {"url": "http://10.0.0.4:30000/", "worker_type": "decode", "is_healthy": false}], "total": 3})";

TEST(ParseWorkers, KeepsTheServersOfTheRoleInOrder) {
  auto decode = parse_workers(kWorkers, "decode");
  ASSERT_TRUE(decode);
  ASSERT_EQ(decode->size(), 2u);
  EXPECT_EQ((*decode)[0].url, "http://10.0.0.3:30000");
  EXPECT_EQ((*decode)[1].url, "http://10.0.0.4:30000");
  EXPECT_EQ((*decode)[1].role, "decode");
  EXPECT_EQ(parse_workers(kWorkers, "all")->size(), 3u);
}

TEST(ParseWorkers, SaysWhatIsWrong) {
  EXPECT_EQ(parse_workers(kWorkers, "regular").error().message, "it has no server with role regular");
  for (const char* wrong :
       {"[]", "{", R"({"workers": [{}]})", R"({"workers": [{"url": 3}]})", R"({"workers": [{"url": "https://x"}]})",
        R"({"workers": [{"url": "a:1", "worker_type": 1}]})"}) {
    EXPECT_FALSE(parse_workers(wrong, "all")) << wrong;
  }
}

TEST(FindTargets, TakesTheRoutersServersAndNamedOnesOnce) {
  ServerThread router(answering(200, kWorkers));
  const FlagValues flags = parsed({"--router", origin(router), "--url", "http://10.0.0.4:30000", "10.0.0.9:1"});
  auto targets = find_targets(flags);
  ASSERT_TRUE(targets) << targets.error().message;
  ASSERT_EQ(targets->servers.size(), 3u);
  EXPECT_EQ(targets->servers[0].url, "http://10.0.0.3:30000");
  EXPECT_EQ(targets->servers[2].url, "http://10.0.0.9:1");
}

TEST(FindTargets, NamesARouterThatDoesNotAnswerAsWanted) {
  ServerThread router(answering(404, "nothing here"));
  EXPECT_NE(find_targets(parsed({"--router", origin(router)})).error().message.find("HTTP 404"), std::string::npos);
  EXPECT_EQ(find_targets(parsed({})).error().code, ErrorCode::kInvalidInput);
}

TEST(FanOut, AsksAllServersAtTheSameTime) {
  // Each server answers when both were asked: one after the other would never end.
  std::shared_ptr<net::ResponseWriter> waiting[2];
  std::atomic<int> asked{0};
  const auto keep = [&](size_t index) {
    return [&, index](net::HttpRequest request, std::shared_ptr<net::ResponseWriter> writer) {
      EXPECT_EQ(request.body, R"({"a":1})");
      const std::string* key = request.header("authorization");
      EXPECT_EQ(key != nullptr ? *key : "", "Bearer secret");
      waiting[index] = std::move(writer);
      ++asked;
    };
  };
  ServerThread first(keep(0)), second(keep(1));
  Targets targets;
  targets.authorization = "Bearer secret";
  targets.servers = {{origin(first), "prefill"}, {origin(second), "decode"}};
  std::jthread answer([&] {
    EXPECT_TRUE(net::testing::eventually([&] { return asked == 2; }));
    ServerThread* servers[] = {&first, &second};
    for (size_t i = 0; i < 2; ++i) {
      servers[i]->on_loop([&] {
        if (waiting[i]) waiting[i]->send({});
        waiting[i].reset();
      });
    }
  });
  const auto answers = fan_out(targets, {"POST", "/control", R"({"a":1})", std::chrono::seconds(20)});
  ASSERT_EQ(answers.size(), 2u);
  for (const FanOutAnswer& one : answers) EXPECT_TRUE(one.ok()) << one.status << one.failure;
  EXPECT_EQ(answers[1].target.role, "decode");
  EXPECT_TRUE(print_answers(answers));
}

TEST(FanOut, OneServerThatFailsDoesNotHideTheOthers) {
  ServerThread good(answering(200, "done")), bad(answering(400, "no"));
  Targets targets;
  targets.servers = {{"http://127.0.0.1:1", "prefill"}, {origin(bad), "decode"}, {origin(good), "decode"}};
  const auto answers = fan_out(targets, {"POST", "/control", "", std::chrono::seconds(20)});
  EXPECT_EQ(answers[0].status, 0);
  EXPECT_NE(answers[0].failure, "");
  EXPECT_EQ(answers[1].status, 400);
  EXPECT_EQ(answers[2].body, "done");
  EXPECT_EQ(print_answers(answers).error().message, "2 of 3 servers did not do it");
}

TEST(FanOut, AServerThatKeepsSilentFailsAtTheTimeout) {
  std::vector<std::shared_ptr<net::ResponseWriter>> kept;
  ServerThread silent([&](net::HttpRequest, std::shared_ptr<net::ResponseWriter> writer) { kept.push_back(writer); });
  Targets targets;
  targets.servers = {{origin(silent), "decode"}};
  const auto answers = fan_out(targets, {"POST", "/control", "", std::chrono::milliseconds(100)});
  EXPECT_EQ(answers[0].status, 0);
  EXPECT_NE(answers[0].failure.find("no answer within"), std::string::npos);
  silent.on_loop([&] { kept.clear(); });
}

}  // namespace
}  // namespace tandem::app
