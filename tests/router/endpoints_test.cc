// The router's own endpoints: health, information, membership, what is fanned out, keys.
#include "tests/router/support.h"

namespace tandem::router {
namespace {

using testing::answers;
using testing::at;
using testing::eventually;
using testing::FakeInstance;
using testing::HttpRequest;
using testing::quick_config;
using testing::RouterThread;
using testing::Writer;
using namespace std::chrono_literals;

// Serves what a table says, 404 otherwise.
FakeInstance::Serve table(std::map<std::string, std::string> pages) {
  return [pages](const HttpRequest& request, const Writer& writer) {
    auto page = pages.find(request.path);
    if (page == pages.end()) return writer->send({404, "application/json", "{}", {}});
    writer->send({200, "application/json", page->second, {}});
  };
}

struct EndpointsTest : ::testing::Test {
  EndpointsTest() {
    prefill.set(table({{"/get_server_info", R"({"tokenizer_path":"/m","disaggregation_mode":"prefill"})"},
                       {"/get_model_info", R"({"model_path":"/m"})"},
                       {"/model_info", R"({"model_path":"/m"})"},
                       {"/generate", "{}"},
                       {"/v1/models", R"({"object":"list","data":[]})"},
                       {"/v1/models/tiny", R"({"id":"tiny"})"},
                       {"/tokenize", R"({"tokens":[1]})"},
                       {"/flush_cache", ""},
                       {"/abort_request", ""},
                       {"/health_generate", ""},
                       {"/metrics", "x_total 1\n"},
                       {"/get_load", R"([{"dp_rank":0,"num_tokens":7},{"dp_rank":1,"num_tokens":5}])"}}));
    decode.set(table({{"/get_server_info",
                       R"({"disaggregation_mode":"decode","internal_states":[{"last_gen_throughput":9.5},{"a":2}]})"},
                      {"/flush_cache", ""},
                      {"/abort_request", ""},
                      {"/health_generate", ""},
                      {"/metrics", "x_total 2\n"}}));
    RouterConfig config = quick_config();
    config.instances = {{prefill.url(), Role::kPrefill, 9001}, {decode.url(), Role::kDecode, {}}};
    router = std::make_unique<RouterThread>(config);
    EXPECT_TRUE(router->wait_ready());
  }
  FakeInstance prefill{answers(200, "{}")}, decode{answers(200, "{}")};
  std::unique_ptr<RouterThread> router;
};

TEST_F(EndpointsTest, HealthFollowsThePair) {
  EXPECT_EQ(router->ask("GET", "/health").body, "OK");
  EXPECT_EQ(router->ask("GET", "/readiness").status, 200);
  EXPECT_EQ(router->ask("GET", "/health_generate").status, 200);
  decode.healthy = false;
  EXPECT_TRUE(eventually([&] { return router->ask("GET", "/health").status == 503; }));
  EXPECT_EQ(router->ask("GET", "/readiness").status, 503);
  EXPECT_EQ(router->ask("GET", "/health_generate").status, 503);
  EXPECT_EQ(router->ask("GET", "/liveness").status, 200);
  decode.healthy = true;
  EXPECT_TRUE(router->wait_ready());
}

TEST_F(EndpointsTest, HealthGenerateFailsWithALeg) {
  decode.set(answers(503, "stuck"));
  auto response = router->ask("GET", "/health_generate");
  EXPECT_EQ(response.status, 503);
  EXPECT_NE(response.body.find(decode.url()), std::string::npos);
}

TEST_F(EndpointsTest, ServerInfoHasTheShapeThatBenchmarkClientsRead) {
  for (const char* path : {"/get_server_info", "/server_info"}) {
    const std::string body = router->ask("GET", path).body;
    EXPECT_EQ(at(body, "/internal_states/0/last_gen_throughput"), "9.5") << body;
    EXPECT_EQ(at(body, "/internal_states/1/a"), "2");
    EXPECT_EQ(at(body, "/prefill/0/tokenizer_path"), "\"/m\"");
    EXPECT_EQ(at(body, "/decode/0/disaggregation_mode"), "\"decode\"");
  }
  decode.set(answers(500, ""));
  const std::string body = router->ask("GET", "/get_server_info").body;
  EXPECT_EQ(at(body, "/internal_states/0/last_gen_throughput"), "0.0") << "a stand-in, as mini_lb has it: " << body;
  EXPECT_EQ(at(body, "/decode"), "[]");
}

TEST_F(EndpointsTest, ModelQuestionsAndTokenizingGoToAPrefill) {
  EXPECT_EQ(router->ask("GET", "/get_model_info").body, R"({"model_path":"/m"})");
  EXPECT_EQ(router->ask("GET", "/model_info").body, R"({"model_path":"/m"})");
  EXPECT_EQ(router->ask("GET", "/v1/models").body, R"({"object":"list","data":[]})");
  EXPECT_EQ(router->ask("GET", "/v1/models/tiny").body, R"({"id":"tiny"})");
  EXPECT_EQ(router->ask("GET", "/v1/models/other").status, 404);
  EXPECT_EQ(router->ask("POST", "/tokenize", R"({"prompt":"a"})").body, R"({"tokens":[1]})");
  auto requests = prefill.requests();
  EXPECT_EQ(requests.back().body, R"({"prompt":"a"})");
}

TEST_F(EndpointsTest, FlushAndAbortReachEveryInstance) {
  auto response = router->ask("POST", "/flush_cache");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(at(response.body, "/workers_flushed"), "2");
  EXPECT_EQ(router->ask("POST", "/abort_request", R"({"rid":"x"})").status, 200);
  EXPECT_EQ(prefill.requests().back().body, R"({"rid":"x"})");
  EXPECT_EQ(decode.requests().back().body, R"({"rid":"x"})");
  decode.set(answers(400, "busy"));
  response = router->ask("POST", "/flush_cache");
  EXPECT_EQ(response.status, 206);
  EXPECT_EQ(at(response.body, "/failed/0/worker"), "\"" + decode.url() + "\"");
}

TEST_F(EndpointsTest, LoadsAndMetricsAreGathered) {
  const std::string loads = router->ask("GET", "/get_loads").body;
  EXPECT_EQ(at(loads, "/workers/0/load"), "12");
  EXPECT_EQ(at(loads, "/workers/1/load"), "-1") << "decode does not know /get_load";
  const std::string engine = router->ask("GET", "/engine_metrics").body;
  EXPECT_NE(engine.find("x_total{worker_addr=\"" + decode.url() + "\"} 2\n"), std::string::npos) << engine;
  const std::string own = router->ask("GET", "/metrics").body;
  EXPECT_NE(own.find("sgl_router_active_workers{worker_type=\"prefill\"} 1"), std::string::npos) << own;
}

TEST_F(EndpointsTest, InstancesRegisterAndLeave) {
  const std::string workers = router->ask("GET", "/workers").body;
  EXPECT_EQ(at(workers, "/total"), "2");
  EXPECT_EQ(at(workers, "/workers/0/bootstrap_port"), "9001");
  EXPECT_EQ(at(workers, "/stats/prefill_count"), "1");
  FakeInstance second(answers(200, R"("second")"));
  auto response = router->ask("POST", "/workers",
                              R"({"url":")" + second.url() + R"(","worker_type":"decode","bootstrap_port":null})");
  EXPECT_EQ(response.status, 202) << response.body;
  EXPECT_TRUE(eventually([&] { return at(router->ask("GET", "/readiness").body, "/decode_count") == "2"; }));
  EXPECT_EQ(router->ask("DELETE", "/workers/http%3A%2F%2F127.0.0.1%3A" + std::to_string(decode.port())).status, 202);
  EXPECT_EQ(router->ask("DELETE", "/workers/" + decode.url()).status, 404) << "it is gone already";
  EXPECT_EQ(router->ask("POST", "/generate", R"({"text":"a"})").body, R"("second")");
  EXPECT_EQ(router->ask("DELETE", "/workers/" + second.url()).status, 202);
  EXPECT_EQ(router->ask("GET", "/health").status, 503);
}

TEST_F(EndpointsTest, WrongRegistrationsAreToldWhatIsWrong) {
  for (const char* body :
       {"nonsense", "[]", "{}", R"({"url":"http://h:1"})", R"({"url":"https://h:1","worker_type":"decode"})",
        R"({"url":"h:1","worker_type":"other"})", R"({"url":"h:1","worker_type":"regular"})",
        R"({"url":"h:1","worker_type":"prefill","bootstrap_port":70000})"}) {
    auto response = router->ask("POST", "/workers", body);
    EXPECT_EQ(response.status, 400) << body;
    EXPECT_NE(at(response.body, "/error/message"), "") << response.body;
  }
  EXPECT_EQ(router->ask("POST", "/workers", R"({"url":")" + decode.url() + R"(","worker_type":"decode"})").status, 400);
}

TEST_F(EndpointsTest, UnknownPathsAndMethods) {
  EXPECT_EQ(router->ask("GET", "/nowhere").status, 404);
  EXPECT_EQ(router->ask("POST", "/start_profile").status, 404) << "control goes to the servers directly";
  EXPECT_EQ(router->ask("GET", "/generate").status, 405);
  EXPECT_EQ(router->ask("DELETE", "/health").status, 405);
  EXPECT_EQ(router->ask("HEAD", "/health").status, 200);
}

TEST(RouterKey, IsWantedOfClientsAndShownToInstances) {
  FakeInstance prefill(answers(200, "{}")), decode(answers(200, "{}"));
  RouterConfig config = quick_config();
  config.api_key = "secret";
  config.instances = {{prefill.url(), Role::kPrefill, {}}, {decode.url(), Role::kDecode, {}}};
  RouterThread router(config);
  ASSERT_TRUE(router.wait_ready()) << "/health is open";
  EXPECT_EQ(router.ask("GET", "/metrics").status, 200);
  for (const net::Headers& headers : std::vector<net::Headers>{{},
                                                               {{"Authorization", "Bearer wrong1"}},
                                                               {{"Authorization", "secret"}},
                                                               {{"Authorization", "Bearer secretX"}}}) {
    auto response = router.ask("POST", "/generate", R"({"text":"a"})", headers);
    EXPECT_EQ(response.status, 401);
    EXPECT_EQ(response.body, R"({"error":"Unauthorized"})");
  }
  EXPECT_EQ(router.ask("GET", "/workers").status, 401);
  EXPECT_EQ(router.ask("POST", "/generate", R"({"text":"a"})", {{"authorization", "Bearer secret"}}).status, 200);
  EXPECT_EQ(*decode.only().header("authorization"), "Bearer secret");
  router.ask("POST", "/flush_cache", "", {{"Authorization", "Bearer secret"}});
  EXPECT_EQ(*decode.requests().back().header("authorization"), "Bearer secret");
}

TEST(RouterKey, AdminKeyIsWantedForControlAndPassedOn) {
  FakeInstance prefill(answers(200, "{}")), decode(answers(200, "{}"));
  RouterConfig config = quick_config();
  config.api_key = "client";
  config.admin_api_key = "admin";
  config.instances = {{prefill.url(), Role::kPrefill, {}}, {decode.url(), Role::kDecode, {}}};
  RouterThread router(config);
  ASSERT_TRUE(router.wait_ready());
  const net::Headers client{{"Authorization", "Bearer client"}}, admin{{"Authorization", "Bearer admin"}};
  const std::string worker = R"({"url":"http://127.0.0.1:1","worker_type":"decode"})";
  for (const net::Headers& headers : {net::Headers{}, client}) {
    for (const char* method : {"GET", "HEAD", "POST"}) {
      EXPECT_EQ(router.ask(method, "/flush_cache", "", headers).status, 401) << method;
    }
    EXPECT_EQ(router.ask("POST", "/abort_request", "{}", headers).status, 401);
    EXPECT_EQ(router.ask("POST", "/workers", worker, headers).status, 401);
    EXPECT_EQ(router.ask("DELETE", "/workers/" + decode.url(), "", headers).status, 401);
  }
  EXPECT_EQ(router.ask("GET", "/workers", "", client).status, 200) << "looking changes nothing";
  EXPECT_EQ(router.ask("POST", "/generate", R"({"text":"a"})", client).status, 200);
  EXPECT_EQ(router.ask("POST", "/flush_cache", "", admin).status, 200);
  EXPECT_EQ(*decode.requests().back().header("authorization"), "Bearer admin");
  EXPECT_EQ(router.ask("POST", "/workers", worker, admin).status, 202);
}

TEST(RouterLoads, PowerOfTwoFollowsPolledTokens) {
  auto loaded = [](int tokens) {
    return table(
        {{"/get_load", R"([{"num_tokens":)" + std::to_string(tokens) + "}]"}, {"/generate", std::to_string(tokens)}});
  };
  FakeInstance prefill(loaded(0)), idle(loaded(10)), busy(loaded(9000));
  RouterConfig config = quick_config();
  config.policy.policy = Policy::kPowerOfTwo;
  config.load_interval = 20ms;
  config.instances = {
      {prefill.url(), Role::kPrefill, {}}, {busy.url(), Role::kDecode, {}}, {idle.url(), Role::kDecode, {}}};
  RouterThread router(config);
  ASSERT_TRUE(router.wait_ready());
  auto asked = [](FakeInstance& instance) {
    int count = 0;
    for (const auto& request : instance.requests()) count += request.path == "/get_load";
    return count;
  };
  ASSERT_TRUE(eventually([&] { return asked(idle) >= 2 && asked(busy) >= 2; }));
  for (int i = 0; i < 10; ++i) EXPECT_EQ(router.ask("POST", "/generate", R"({"text":"a"})").body, "10");
}

}  // namespace
}  // namespace tandem::router
