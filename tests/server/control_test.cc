#include "tests/server/support.h"

namespace tandem::server {
namespace {

using namespace testing;

engine::EngineSnapshot alive(const TestClock& clock) {
  engine::EngineSnapshot snapshot;
  snapshot.last_progress = clock.now();
  return snapshot;
}

TEST(Health, IsTrueOnlyWhileTheEngineMakesProgress) {
  Fixture fixture;
  EXPECT_EQ(fixture.get("/health").status, 503) << "no step yet";
  fixture.engine().set_snapshot(alive(fixture.clock()));
  auto healthy = fixture.get("/health");
  EXPECT_EQ(healthy.status, 200);
  EXPECT_EQ(healthy.body, "");
  fixture.clock().advance(19s);
  EXPECT_EQ(fixture.get("/health").status, 200);
  fixture.clock().advance(2s);
  EXPECT_EQ(fixture.get("/health").status, 503);
  fixture.engine().set_snapshot(alive(fixture.clock()));
  EXPECT_EQ(fixture.get("/health").status, 200);
  engine::EngineSnapshot draining = alive(fixture.clock());
  draining.draining = true;
  fixture.engine().set_snapshot(draining);
  EXPECT_EQ(fixture.get("/health").status, 503);
}

TEST(Health, NothingIsServedBeforeTheEngineIsThere) {
  Fixture fixture(tiny_config(), false);
  EXPECT_EQ(fixture.get("/health").status, 503);
  EXPECT_EQ(fixture.get("/health_generate").status, 503);
  EXPECT_EQ(fixture.post("/generate", R"({"input_ids":[5]})").status, 503);
  EXPECT_EQ(fixture.get("/flush_cache").status, 503);
  EXPECT_EQ(fixture.get("/v1/models").status, 200);
  EXPECT_EQ(at(fixture.get("/get_server_info").body, "/status"), "starting");
}

TEST(Health, HealthGenerateAsksForOneTokenThatNobodyElseSees) {
  ServerConfig config = tiny_config();
  config.role = engine::Role::kDecode;
  Fixture fixture(config);
  fixture.engine().set_script(says({0}));
  EXPECT_EQ(fixture.get("/health_generate").status, 200);
  auto requests = fixture.engine().submitted();
  ASSERT_EQ(requests.size(), 1u);
  EXPECT_TRUE(requests[0].is_health_check);
  EXPECT_TRUE(requests[0].rid.starts_with("HEALTH_CHECK_"));
  EXPECT_EQ(requests[0].sampling->max_new_tokens, 1);
  EXPECT_TRUE(requests[0].bootstrap->is_fake());
  EXPECT_EQ(requests[0].bootstrap->room, 0u);
}

TEST(Health, HealthGenerateTakesABusyRanksStepsAsLife) {
  Fixture fixture;
  auto pending = std::async(std::launch::async, [&] { return fixture.get("/health_generate").status; });
  ASSERT_TRUE(eventually([&] { return fixture.engine().submitted().size() == 1; }));
  engine::EngineSnapshot snapshot = alive(fixture.clock());
  snapshot.forward_steps = 1;
  fixture.engine().set_snapshot(snapshot);
  EXPECT_EQ(pending.get(), 200);
}

TEST(Health, HealthGenerateGivesUpAtTheDeadlineAndCancels) {
  Fixture fixture;
  auto pending = std::async(std::launch::async, [&] { return fixture.get("/health_generate").status; });
  ASSERT_TRUE(eventually([&] { return fixture.engine().submitted().size() == 1; }));
  fixture.clock().advance(21s);
  EXPECT_EQ(pending.get(), 503);
  EXPECT_TRUE(eventually([&] { return fixture.engine().cancelled().size() == 1; }));
}

TEST(Drain, TakesNothingNewAndLetsTheOldFinish) {
  Fixture fixture;
  fixture.engine().set_snapshot(alive(fixture.clock()));
  auto pending = std::async(std::launch::async, [&] { return fixture.post("/generate", R"({"input_ids":[5]})"); });
  ASSERT_TRUE(eventually([&] { return fixture.engine().submitted().size() == 1; }));
  fixture.on_loop([&] { fixture.server().drain(); });
  EXPECT_TRUE(fixture.engine().drained());
  EXPECT_EQ(fixture.get("/health").status, 503);
  EXPECT_EQ(fixture.post("/generate", R"({"input_ids":[6]})").status, 503);
  EXPECT_EQ(fixture.server().active_requests(), 1u);
  fixture.engine().say(event_of(fixture.engine().submitted()[0], {10}, length_finish(1)));
  EXPECT_EQ(pending.get().status, 200);
  EXPECT_TRUE(eventually([&] { return fixture.idle(); }));
}

TEST(Drain, AbortAllEndsWhatIsOpenWithTheReason) {
  Fixture fixture;
  auto whole = std::async(std::launch::async, [&] { return fixture.post("/generate", R"({"input_ids":[5]})"); });
  auto stream =
      std::async(std::launch::async, [&] { return fixture.post("/generate", R"({"input_ids":[5],"stream":true})"); });
  ASSERT_TRUE(eventually([&] { return fixture.engine().submitted().size() == 2; }));
  fixture.on_loop([&] { fixture.server().abort_all("The server stops."); });
  auto failed = whole.get();
  EXPECT_EQ(failed.status, 503);
  EXPECT_EQ(at(failed.body, "/message"), "The server stops.");
  EXPECT_EQ(at(events_of(stream.get().body)[0], "/meta_info/finish_reason/message"), "The server stops.");
  EXPECT_TRUE(eventually([&] { return fixture.idle(); }));
}

TEST(Abort, MatchesRequestIdsByPrefix) {
  Fixture fixture;
  fixture.engine().set_answers_cancels(true);
  auto batch = std::async(std::launch::async,
                          [&] { return fixture.post("/generate", R"({"input_ids":[[5],[6]],"rid":"job"})"); });
  auto other =
      std::async(std::launch::async, [&] { return fixture.post("/generate", R"({"input_ids":[7],"rid":"x"})"); });
  ASSERT_TRUE(eventually([&] { return fixture.engine().submitted().size() == 3; }));
  auto answer = fixture.post("/abort_request", R"({"rid":"job"})");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.body, "");
  auto aborted = batch.get();
  EXPECT_EQ(aborted.status, 200) << "an abort without a status is an answer";
  EXPECT_EQ(at(aborted.body, "/1/meta_info/finish_reason/type"), "abort");
  EXPECT_EQ(fixture.server().active_requests(), 1u);
  EXPECT_EQ(fixture.post("/abort_request", R"({"rid":""})").status, 200);
  EXPECT_EQ(fixture.engine().cancelled().size(), 2u) << "no id is no request";
  EXPECT_EQ(fixture.post("/abort_request", R"({"abort_all":true})").status, 200);
  other.get();
  EXPECT_TRUE(eventually([&] { return fixture.idle(); }));
}

TEST(FlushCache, TellsWhetherItWasDone) {
  Fixture fixture;
  auto flushed = fixture.post("/flush_cache", "");
  EXPECT_EQ(flushed.status, 200);
  EXPECT_TRUE(flushed.body.starts_with("Cache flushed.\n"));
  fixture.engine().set_flush_answer(false);
  EXPECT_EQ(fixture.get("/flush_cache").status, 400);
  fixture.engine().set_room(0);
  EXPECT_EQ(fixture.get("/flush_cache").status, 503);
}

TEST(SlowDown, SecondsOfAnyFormReachTheEngineAndNullEndsThem) {
  Fixture fixture;
  for (const char* body :
       {R"({"forward_sleep_time": 180})", R"({"forward_sleep_time": "90.0", "more": 1})",
        R"({"forward_sleep_time": 0.0001})", R"({"forward_sleep_time": 0})", R"({"forward_sleep_time": null})"}) {
    const auto answer = fixture.post("/slow_down", body);
    EXPECT_EQ(answer.status, 200) << body;
    EXPECT_EQ(answer.body, "null");
    EXPECT_EQ(answer.content_type, "application/json");
  }
  std::vector<uint32_t> slept;
  for (const auto& command : fixture.engine().slow_downs()) slept.push_back(command.sleep_ms);
  EXPECT_EQ(slept, (std::vector<uint32_t>{180000, 90000, 1, 0, 0}));
}

TEST(SlowDown, WhatIsNoTimeIsRefusedByName) {
  Fixture fixture;
  for (const char* body : {"", "{}", "[1]", R"({"forward_sleep_time": -1})", R"({"forward_sleep_time": 1e9})",
                           R"({"forward_sleep_time": "long"})", R"({"forward_sleep_time": [1]})"}) {
    const auto answer = fixture.post("/slow_down", body);
    EXPECT_EQ(answer.status, 400) << body;
    EXPECT_EQ(at(answer.body, "/object"), "error") << answer.body;
  }
  EXPECT_EQ(at(fixture.post("/slow_down", R"({"forward_sleep_time": -1})").body, "/message"),
            "forward_sleep_time: -1 is not in [0, 86400] seconds");
  EXPECT_EQ(fixture.get("/slow_down").status, 400) << "a GET without a body has no key";
  EXPECT_TRUE(fixture.engine().slow_downs().empty());
}

TEST(SlowDown, AnOrderWaitsForRoomInTheEnginesQueue) {
  Fixture fixture;
  fixture.engine().set_room(0);
  auto pending =
      std::async(std::launch::async, [&] { return fixture.post("/slow_down", R"({"forward_sleep_time": 2})").status; });
  EXPECT_EQ(fixture.get("/ping").status, 200);
  EXPECT_TRUE(fixture.engine().slow_downs().empty());
  fixture.engine().set_room(-1);
  EXPECT_EQ(pending.get(), 200);
  EXPECT_EQ(fixture.engine().slow_downs().size(), 1u);
}

TEST(HoldAdmission, OrdersAreNumberedAndBounded) {
  ServerConfig config = tiny_config();
  config.max_running_requests = 64;
  Fixture fixture(config);
  const auto answer = fixture.post("/hold_admission", R"({"running_requests": "64", "timeout_s": 1.5})");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(at(answer.body, "/running_requests"), "64");
  EXPECT_EQ(at(answer.body, "/timeout_s"), "1.5");
  EXPECT_EQ(fixture.post("/hold_admission", R"({"running_requests": 3})").status, 200);
  EXPECT_EQ(at(fixture.post("/hold_admission", R"({"running_requests": null})").body, "/running_requests"), "null");
  const auto holds = fixture.engine().holds();
  ASSERT_EQ(holds.size(), 3u);
  EXPECT_EQ(holds[0].running_requests, 64);
  EXPECT_EQ(seconds(holds[0].timeout), 1.5);
  EXPECT_EQ(seconds(holds[1].timeout), 300);
  EXPECT_EQ(holds[2].running_requests, 0);
  EXPECT_NE(holds[0].version, holds[1].version);
  EXPECT_NE(holds[1].version, holds[2].version);
  for (const char* body : {"", "{}", R"({"running_requests": 0})", R"({"running_requests": -2})",
                           R"({"running_requests": 1.5})", R"({"running_requests": 3, "timeout_s": 0})"}) {
    EXPECT_EQ(fixture.post("/hold_admission", body).status, 400) << body;
  }
  EXPECT_EQ(at(fixture.post("/hold_admission", R"({"running_requests": 65})").body, "/message"),
            "running_requests: a rank runs at most 64 requests, 65 were asked for");
  EXPECT_EQ(fixture.engine().holds().size(), 3u);
}

TEST(HoldAdmission, APrefillServerHasNothingToHold) {
  ServerConfig config = tiny_config();
  config.role = engine::Role::kPrefill;
  config.max_running_requests = 64;
  Fixture fixture(config);
  EXPECT_EQ(fixture.post("/hold_admission", R"({"running_requests": 3})").status, 400);
  EXPECT_EQ(fixture.post("/slow_down", R"({"forward_sleep_time": 3})").status, 200);
}

TEST(Info, SleepAndHoldShowInTheInternalState) {
  Fixture fixture;
  EXPECT_EQ(at(fixture.get("/get_server_info").body, "/internal_states/0/forward_sleep_time"), "null");
  EXPECT_EQ(at(fixture.get("/get_server_info").body, "/internal_states/0/held_for_requests"), "null");
  engine::EngineSnapshot snapshot = alive(fixture.clock());
  snapshot.sleep_ms = 1500, snapshot.asleep = true, snapshot.held_for = 12;
  fixture.engine().set_snapshot(snapshot);
  const std::string body = fixture.get("/get_server_info").body;
  EXPECT_EQ(at(body, "/internal_states/0/forward_sleep_time"), "1.5");
  EXPECT_EQ(at(body, "/internal_states/0/is_sleeping"), "true");
  EXPECT_EQ(at(body, "/internal_states/0/held_for_requests"), "12");
}

TEST(Info, ServerInfoHasArgumentsStateAndOurOwnCounters) {
  ServerConfig config = tiny_config();
  config.weight_gb = 0.126;
  Fixture fixture(config);
  engine::EngineSnapshot snapshot = alive(fixture.clock());
  snapshot.running = 2, snapshot.queued = 3, snapshot.free_blocks = 40, snapshot.total_blocks = 50;
  snapshot.used_tokens = 100, snapshot.waiting_tokens = 11, snapshot.handovers = 6, snapshot.last_gen_throughput = 12.5;
  fixture.engine().set_snapshot(snapshot);
  for (const char* path : {"/get_server_info", "/server_info"}) {
    std::string body = fixture.get(path).body;
    EXPECT_EQ(at(body, "/tp_size"), "1");
    EXPECT_EQ(at(body, "/status"), "ready");
    EXPECT_EQ(at(body, "/max_total_num_tokens"), "65536");
    EXPECT_EQ(at(body, "/max_req_input_len"), "4090");
    EXPECT_EQ(at(body, "/internal_states/0/tp_size"), "1");
    EXPECT_EQ(at(body, "/internal_states/0/last_gen_throughput"), "12.5");
    EXPECT_EQ(at(body, "/internal_states/0/memory_usage/weight"), "0.13");
    EXPECT_EQ(at(body, "/internal_states/0/memory_usage/token_capacity"), "65536");
    EXPECT_EQ(at(body, "/internal_states/0/free_blocks"), "40");
    EXPECT_EQ(at(body, "/internal_states/0/handovers"), "6");
  }
  std::string load = fixture.get("/get_load").body;
  EXPECT_EQ(at(load, "/0/num_reqs"), "5");
  EXPECT_EQ(at(load, "/0/num_waiting_reqs"), "3");
  EXPECT_EQ(at(load, "/0/num_tokens"), "111");
}

TEST(Info, ModelsAndModelInfo) {
  Fixture fixture;
  std::string models = fixture.get("/v1/models").body;
  EXPECT_EQ(at(models, "/data/0/id"), "models/tiny");
  EXPECT_EQ(at(models, "/data/0/max_model_len"), "4096");
  EXPECT_EQ(at(fixture.get("/v1/models/models/tiny").body, "/object"), "model");
  auto unknown = fixture.get("/v1/models/gpt");
  EXPECT_EQ(unknown.status, 404);
  EXPECT_EQ(at(unknown.body, "/error/code"), "model_not_found");
  std::string info = fixture.get("/get_model_info").body;
  EXPECT_EQ(at(info, "/tokenizer_path"), "models/tiny");
  EXPECT_EQ(at(info, "/architectures/0"), "DeepseekV3ForCausalLM");
  EXPECT_EQ(fixture.get("/weight_version").body, R"({"weight_version":"default"})");
}

TEST(Tokenize, BothWaysSingleAndBatch) {
  Fixture fixture;
  std::vector<int32_t> with_bos = tiny_tokenizer()->encode("Hello", true);
  auto one = fixture.post("/tokenize", R"({"model":"m","prompt":"Hello"})").body;
  EXPECT_EQ(at(one, "/count"), std::to_string(with_bos.size()));
  EXPECT_EQ(at(one, "/max_model_len"), "4096");
  auto two = fixture.post("/v1/tokenize", R"({"prompt":["Hello",""],"add_special_tokens":false})").body;
  EXPECT_EQ(at(two, "/count"), "[" + std::to_string(with_bos.size() - 1) + ",0]");
  EXPECT_EQ(at(fixture.post("/detokenize", R"({"tokens":)" + at(one, "/tokens") + "}").body, "/text"), "Hello");
  EXPECT_EQ(at(fixture.post("/v1/detokenize", R"({"tokens":)" + at(two, "/tokens") + "}").body, "/text"),
            R"(["Hello",""])");
  EXPECT_EQ(fixture.post("/tokenize", R"({"prompt":5})").status, 400);
}

TEST(Routes, UnknownPathAndWrongMethod) {
  Fixture fixture;
  auto unknown = fixture.get("/fast_up");
  EXPECT_EQ(unknown.status, 404);
  EXPECT_EQ(unknown.body, R"({"detail":"Not Found"})");
  auto wrong = fixture.get("/generate");
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(wrong.body, R"({"detail":"Method Not Allowed"})");
  EXPECT_EQ(fixture.call("PUT", "/generate", "{", {}).status, 400) << "PUT is a way to generate too";
}

TEST(Routes, ApiKeyGuardsAllButHealthAndMetrics) {
  ServerConfig config = tiny_config();
  config.api_key = "secret";
  Fixture fixture(config);
  fixture.engine().set_snapshot(alive(fixture.clock()));
  auto refused = fixture.get("/v1/models");
  EXPECT_EQ(refused.status, 401);
  EXPECT_EQ(refused.body, R"({"error":"Unauthorized"})");
  for (const char* wrong : {"Bearer secre", "Bearer secret2", "secret", "bearer secret", ""}) {
    EXPECT_EQ(fixture.get("/v1/models", {{"Authorization", wrong}}).status, 401) << wrong;
  }
  EXPECT_EQ(fixture.get("/v1/models", {{"Authorization", "Bearer secret"}}).status, 200);
  EXPECT_EQ(fixture.get("/health").status, 200);
  EXPECT_EQ(fixture.get("/metrics").status, 404) << "not enabled, but not guarded";
  EXPECT_EQ(fixture.get("/nothing").status, 401);
}

TEST(Routes, AdminKeyGuardsWhatChangesTheServer) {
  ServerConfig config = tiny_config();
  config.api_key = "client";
  config.admin_api_key = "admin";
  Fixture fixture(config);
  const net::Headers none, client{{"Authorization", "Bearer client"}}, admin{{"Authorization", "Bearer admin"}};
  for (const char* path : {"/flush_cache", "/abort_request", "/slow_down", "/hold_admission", "/start_profile",
                           "/stop_profile", "/start_expert_distribution_record", "/stop_expert_distribution_record",
                           "/dump_expert_distribution_record", "/rebalance"}) {
    // A body that is refused by whoever reads it: nothing has to happen behind the key.
    EXPECT_EQ(fixture.call("POST", path, "[", none).status, 401) << path;
    EXPECT_EQ(fixture.call("POST", path, "[", client).status, 401) << path;
  }
  EXPECT_EQ(fixture.call("POST", "/abort_request", "[", admin).status, 400);
  EXPECT_EQ(fixture.call("POST", "/slow_down", "[", admin).status, 400);
  EXPECT_EQ(fixture.get("/v1/models", none).status, 401);
  EXPECT_EQ(fixture.get("/v1/models", client).status, 200);
  EXPECT_EQ(fixture.get("/v1/models", admin).status, 200) << "who may change may ask";
}

TEST(Routes, AnAdminKeyAloneLeavesTheRestOpen) {
  ServerConfig config = tiny_config();
  config.admin_api_key = "admin";
  Fixture fixture(config);
  EXPECT_EQ(fixture.get("/v1/models").status, 200);
  EXPECT_EQ(fixture.call("POST", "/slow_down", "[", {}).status, 401);
  EXPECT_EQ(fixture.call("POST", "/slow_down", "[", {{"Authorization", "Bearer admin"}}).status, 400);
}

std::string header_of(const net::HttpResponse& response, std::string_view name) {
  for (const auto& [key, value] : response.headers) {
    std::string lower;
    for (char c : key) lower += static_cast<char>(std::tolower(c));
    if (lower == name) return value;
  }
  return "(none)";
}

TEST(Routes, CrossOriginRequestsAreAllowed) {
  Fixture fixture;
  EXPECT_EQ(header_of(fixture.get("/ping"), "access-control-allow-origin"), "(none)");
  EXPECT_EQ(header_of(fixture.get("/ping", {{"Origin", "http://a"}}), "access-control-allow-origin"), "*");
  auto preflight = fixture.call("OPTIONS", "/generate", "",
                                {{"Origin", "http://a"},
                                 {"Access-Control-Request-Method", "POST"},
                                 {"Access-Control-Request-Headers", "authorization"}});
  EXPECT_EQ(preflight.status, 200);
  EXPECT_EQ(header_of(preflight, "access-control-allow-headers"), "authorization");
}

TEST(Metrics, CountRequestsAndTokensButNotProbes) {
  ServerConfig config = tiny_config();
  config.enable_metrics = true;
  Fixture fixture(config);
  fixture.engine().set_script(says({10, 11, 12}));
  fixture.post("/generate", R"({"input_ids":[5,6]})");
  fixture.post("/generate", R"({"input_ids":[5,6],"log_metrics":false})");
  EXPECT_EQ(fixture.get("/health_generate").status, 200);
  std::string text = fixture.get("/metrics").body;
  auto line = [&](const std::string& name) {
    size_t at = text.find("\n" + name + "{model_name=\"models/tiny\"} ");
    return at == std::string::npos
               ? "(none)"
               : text.substr(text.find("} ", at) + 2, text.find('\n', at + 1) - text.find("} ", at) - 2);
  };
  EXPECT_EQ(line("sglang:num_requests_total"), "1") << text;
  EXPECT_EQ(line("sglang:prompt_tokens_total"), "2");
  EXPECT_EQ(line("sglang:generation_tokens_total"), "3");
  EXPECT_EQ(line("sglang:time_to_first_token_seconds_count"), "1");
  EXPECT_EQ(line("sglang:inter_token_latency_seconds_count"), "2");
}

}  // namespace
}  // namespace tandem::server
