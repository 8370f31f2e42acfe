#include "tests/server/support.h"

namespace tandem::server {
namespace {

using namespace testing;

std::vector<int32_t> ids_of(const std::string& text) { return tiny_tokenizer()->encode(text, false); }

TEST(Generate, AnswersOneObjectWithTextIdsAndMetaInfo) {
  Fixture fixture;
  std::vector<int32_t> ids = ids_of("Hello world");
  fixture.engine().set_script(says(ids));
  auto response = fixture.post("/generate", R"({"text":"Hi","sampling_params":{"max_new_tokens":8},"rid":"mine"})");
  ASSERT_EQ(response.status, 200) << response.body;
  EXPECT_EQ(at(response.body, "/text"), "Hello world");
  EXPECT_EQ(at(response.body, "/meta_info/id"), "mine");
  EXPECT_EQ(at(response.body, "/meta_info/finish_reason/type"), "length");
  EXPECT_EQ(at(response.body, "/meta_info/finish_reason/length"), std::to_string(ids.size()));
  EXPECT_EQ(at(response.body, "/meta_info/completion_tokens"), std::to_string(ids.size()));
  EXPECT_EQ(at(response.body, "/meta_info/weight_version"), "default");
  EXPECT_EQ(at(response.body, "/index"), "(none)");
  ASSERT_EQ(fixture.engine().submitted().size(), 1u);
  api::EngineRequest request = fixture.engine().submitted()[0];
  EXPECT_EQ(request.input_ids, tiny_tokenizer()->encode("Hi", true));
  EXPECT_EQ(request.sampling->max_new_tokens, 8);
  EXPECT_TRUE(request.seed.has_value());
  EXPECT_EQ(request.eos_token_ids, std::vector<int32_t>{1});
  EXPECT_TRUE(eventually([&] { return fixture.idle(); }));
}

TEST(Generate, StreamsCumulativeTextAndIdsAndEndsWithDone) {
  Fixture fixture;
  std::vector<int32_t> ids = ids_of("Hello world");
  ASSERT_GE(ids.size(), 2u);
  fixture.engine().set_script(says(ids));
  auto response = fixture.post("/generate", R"({"text":"Hi","stream":true})");
  ASSERT_EQ(response.status, 200);
  EXPECT_TRUE(response.content_type.starts_with("text/event-stream")) << response.content_type;
  auto events = events_of(response.body);
  ASSERT_EQ(events.size(), ids.size() + 1);
  EXPECT_EQ(events.back(), "[DONE]");
  std::string expected;
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    expected += tiny_tokenizer()->decode({&ids[i], 1}, true);
    EXPECT_EQ(at(events[i], "/text"), expected);
    EXPECT_EQ(at(events[i], "/meta_info/completion_tokens"), std::to_string(i + 1));
    EXPECT_EQ(at(events[i], "/meta_info/finish_reason") == "null", i + 2 < events.size());
  }
  EXPECT_EQ(at(events[0], "/meta_info/response_sent_to_client_ts").starts_with("36"), true);
  EXPECT_EQ(at(events[1], "/meta_info/response_sent_to_client_ts"), "(none)");
}

TEST(Generate, StreamOutputSendsOnlyNewIds) {
  ServerConfig config = tiny_config();
  config.stream_output = true;
  Fixture fixture(config);
  fixture.engine().set_script(says({10, 11, 12}));
  auto events = events_of(fixture.post("/generate", R"({"input_ids":[5],"stream":true})").body);
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(at(events[0], "/output_ids"), "[10]");
  EXPECT_EQ(at(events[2], "/output_ids"), "[12]");
}

TEST(Generate, StreamIntervalSendsFirstTokenAloneThenEveryKthAndTheLast) {
  Fixture fixture;
  fixture.engine().set_script(says({10, 11, 12, 13, 14, 15, 16, 17}));
  auto events = events_of(
      fixture.post("/generate", R"({"input_ids":[5],"stream":true,"sampling_params":{"stream_interval":3}})").body);
  std::vector<std::string> counts;
  for (size_t i = 0; i + 1 < events.size(); ++i) counts.push_back(at(events[i], "/meta_info/completion_tokens"));
  EXPECT_EQ(counts, (std::vector<std::string>{"1", "4", "7", "8"}));
}

TEST(Generate, BatchStreamInterleavesWithIndexAndOneDone) {
  Fixture fixture;
  auto pending = std::async(std::launch::async, [&] {
    return fixture.post("/generate", R"({"input_ids":[[5],[6,7]],"stream":true,"rid":"b"})");
  });
  ASSERT_TRUE(eventually([&] { return fixture.engine().submitted().size() == 2; }));
  auto requests = fixture.engine().submitted();
  EXPECT_EQ(requests[0].rid, "b_0");
  EXPECT_EQ(requests[1].rid, "b_1");
  fixture.engine().say(event_of(requests[1], {20}));
  fixture.engine().say(event_of(requests[0], {10}, length_finish(1)));
  fixture.engine().say(event_of(requests[1], {21}, length_finish(2)));
  auto events = events_of(pending.get().body);
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(at(events[0], "/index"), "1");
  EXPECT_EQ(at(events[1], "/index"), "0");
  EXPECT_EQ(at(events[2], "/output_ids"), "[20,21]");
  EXPECT_EQ(events[3], "[DONE]");
}

TEST(Generate, LatencyOfEachSequenceEndsWithItsOwnLastToken) {
  Fixture fixture;
  auto pending =
      std::async(std::launch::async, [&] { return fixture.post("/generate", R"({"input_ids":[[5],[6]]})"); });
  ASSERT_TRUE(eventually([&] { return fixture.engine().submitted().size() == 2; }));
  auto requests = fixture.engine().submitted();
  fixture.clock().advance(1s);
  fixture.engine().say(event_of(requests[0], {10}, length_finish(1)));
  fixture.on_loop([] {});  // the first event is read
  fixture.on_loop([] {});
  fixture.clock().advance(2s);
  fixture.engine().say(event_of(requests[1], {10}, length_finish(1)));
  std::string body = pending.get().body;
  EXPECT_EQ(at(body, "/0/meta_info/e2e_latency"), "1.0");
  EXPECT_EQ(at(body, "/1/meta_info/e2e_latency"), "3.0");
}

TEST(Generate, NExpandsEachPromptPromptMajor) {
  Fixture fixture;
  fixture.engine().set_script([](const api::EngineRequest& request, const FakeEngine::Sink& sink) {
    sink(event_of(request, {static_cast<int32_t>(100 + request.id.value)}, length_finish(1)));
  });
  auto response = fixture.post("/generate", R"({"input_ids":[[5],[6]],"sampling_params":{"n":2,"sampling_seed":40}})");
  ASSERT_EQ(response.status, 200) << response.body;
  auto requests = fixture.engine().submitted();
  ASSERT_EQ(requests.size(), 4u);
  EXPECT_EQ(requests[1].input_ids, std::vector<int32_t>{5});
  EXPECT_EQ(requests[2].input_ids, std::vector<int32_t>{6});
  EXPECT_EQ(requests[0].seed, 40u);
  EXPECT_EQ(requests[1].seed, 41u) << "the same seed would give the same text n times";
  EXPECT_EQ(at(response.body, "/3/output_ids"), "[" + std::to_string(100 + requests[3].id.value) + "]");
  EXPECT_EQ(at(response.body, "/4"), "(none)");
}

TEST(Generate, WithholdsIncompleteCharactersAndNeverSplitsThem) {
  Fixture fixture;
  std::vector<int32_t> ids = ids_of("\xf0\x9f\xa6\x86");  // a duck: several byte tokens
  ASSERT_GE(ids.size(), 2u);
  fixture.engine().set_script(says(ids));
  auto events = events_of(fixture.post("/generate", R"({"text":"Hi","stream":true})").body);
  EXPECT_EQ(at(events[0], "/text"), "");
  EXPECT_EQ(at(events[ids.size() - 1], "/text"), "\xf0\x9f\xa6\x86");
}

TEST(Generate, StopStringAcrossTokensEndsTheAnswerAndCancelsTheSequence) {
  Fixture fixture;
  std::vector<int32_t> ids = ids_of("one STOP two");
  fixture.engine().set_script(says(ids));
  auto response = fixture.post("/generate", R"({"text":"Hi","sampling_params":{"stop":["STOP"]}})");
  EXPECT_EQ(at(response.body, "/text"), "one ");
  EXPECT_EQ(at(response.body, "/meta_info/finish_reason/type"), "stop");
  EXPECT_EQ(at(response.body, "/meta_info/finish_reason/matched"), "STOP");
  ASSERT_TRUE(eventually([&] { return fixture.engine().cancelled().size() == 1; }));
  EXPECT_EQ(fixture.engine().cancelled()[0].reason, engine::CancelReason::kStopText);
  EXPECT_EQ(fixture.engine().cancelled()[0].matched_text, "STOP");
  EXPECT_TRUE(eventually([&] { return fixture.idle(); }));
}

TEST(Generate, NoStopTrimKeepsTheStopString) {
  Fixture fixture;
  fixture.engine().set_script(says(ids_of("one STOP two")));
  auto response = fixture.post("/generate", R"({"text":"Hi","sampling_params":{"stop":"STOP","no_stop_trim":true}})");
  EXPECT_EQ(at(response.body, "/text"), "one STOP");
}

TEST(Generate, AtTheLengthLimitAStopStringIsNeitherLookedForNorTrimmed) {
  Fixture fixture;
  std::vector<int32_t> ids = ids_of("one STOP");
  fixture.engine().set_script(says(ids));
  auto response = fixture.post("/generate", R"({"text":"Hi","sampling_params":{"stop":"STOP"}})");
  EXPECT_EQ(at(response.body, "/meta_info/finish_reason/type"), "length");
  EXPECT_EQ(at(response.body, "/text"), "one STOP");
  EXPECT_TRUE(fixture.engine().cancelled().empty());
}

TEST(Generate, TextHeldBackForAStopStringComesWithTheEnd) {
  Fixture fixture;
  std::vector<int32_t> ids = ids_of("one STO");
  ids.push_back(1);
  fixture.engine().set_script(says(ids, stop_token(1)));
  auto events =
      events_of(fixture.post("/generate", R"({"text":"Hi","stream":true,"sampling_params":{"stop":"STOP"}})").body);
  EXPECT_EQ(at(events[ids.size() - 2], "/text"), "one ");
  EXPECT_EQ(at(events[ids.size() - 1], "/text"), "one STO");
}

TEST(Generate, MatchedStopTokenIsCountedAndListedButNotInTheText) {
  Fixture fixture;
  std::vector<int32_t> ids = ids_of("Hello world");
  fixture.engine().set_script(says(ids, stop_token(ids.back())));
  auto response = fixture.post("/generate", R"({"text":"Hi","sampling_params":{"stop_token_ids":[9]}})");
  EXPECT_EQ(at(response.body, "/text"), tiny_tokenizer()->decode(std::span(ids).first(ids.size() - 1), true));
  EXPECT_EQ(at(response.body, "/meta_info/completion_tokens"), std::to_string(ids.size()));
  EXPECT_EQ(at(response.body, "/meta_info/finish_reason/matched"), std::to_string(ids.back()));
}

TEST(Generate, LogprobsComeAsTriples) {
  Fixture fixture;
  fixture.engine().set_script([](const api::EngineRequest& request, const FakeEngine::Sink& sink) {
    api::EngineEvent event = event_of(request, {10}, length_finish(1));
    api::TokenLogprob first, second, out;
    first.token = 5, first.present = false;
    second.token = 6, second.logprob = -2;
    second.top = {{6, -2.0f}};
    out.token = 10, out.logprob = -0.5f;
    out.top = {{10, -0.5f}, {11, -1.5f}};
    out.token_ids = {-3.0f};
    event.input_logprobs = {first, second};
    event.logprobs = {out};
    sink(event);
  });
  auto response = fixture.post("/generate",
                               R"({"input_ids":[5,6],"return_logprob":true,"logprob_start_len":0,"top_logprobs_num":2,
          "token_ids_logprob":[77]})");
  EXPECT_EQ(at(response.body, "/meta_info/input_token_logprobs"), "[[null,5,null],[-2.0,6,null]]");
  EXPECT_EQ(at(response.body, "/meta_info/output_token_logprobs"), "[[-0.5,10,null]]");
  EXPECT_EQ(at(response.body, "/meta_info/output_top_logprobs"), "[[[-0.5,10,null],[-1.5,11,null]]]");
  EXPECT_EQ(at(response.body, "/meta_info/input_top_logprobs"), "[null,[[-2.0,6,null]]]");
  EXPECT_EQ(at(response.body, "/meta_info/output_token_ids_logprobs"), "[[[-3.0,77,null]]]");
  EXPECT_EQ(fixture.engine().submitted()[0].logprob_start_len, 0);
}

TEST(Generate, QueueFullIs503AndLeavesNothingBehind) {
  Fixture fixture;
  fixture.engine().set_room(1);
  auto response = fixture.post("/generate", R"({"input_ids":[[5],[6],[7]],"stream":true})");
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(response.body,
            R"({"object":"error","message":"The request queue is full.","type":"503","param":null,"code":503})");
  EXPECT_TRUE(std::any_of(response.headers.begin(), response.headers.end(),
                          [](const auto& header) { return net::equals_ignoring_case(header.first, "retry-after"); }));
  EXPECT_TRUE(eventually([&] { return fixture.idle(); }));
  fixture.engine().set_room(-1);
  EXPECT_TRUE(eventually([&] { return fixture.engine().cancelled().size() == 1; })) << "the one that was taken";
}

TEST(Generate, SchedulerAbortIsAnErrorWithItsStatusOrAnEvent) {
  Fixture fixture;
  fixture.engine().set_script([](const api::EngineRequest& request, const FakeEngine::Sink& sink) {
    sink(event_of(request, {}, abort_finish("transfer failed", 500)));
  });
  auto whole = fixture.post("/generate", R"({"input_ids":[5]})");
  EXPECT_EQ(whole.status, 500);
  EXPECT_EQ(whole.body, R"({"object":"error","message":"transfer failed","type":"500","param":null,"code":500})");
  auto events = events_of(fixture.post("/generate", R"({"input_ids":[5],"stream":true})").body);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(at(events[0], "/meta_info/finish_reason/type"), "abort");
  EXPECT_EQ(at(events[0], "/meta_info/finish_reason/status_code"), "500");
  EXPECT_EQ(events[1], "[DONE]");
}

TEST(Generate, HangUpCancelsEverySequenceAtOnce) {
  Fixture fixture;
  {
    RawClient client(fixture.port());
    std::string body = R"({"input_ids":[[5],[6]],"stream":true})";
    client.say("POST /generate HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: " +
               std::to_string(body.size()) + "\r\n\r\n" + body);
    ASSERT_TRUE(eventually([&] { return fixture.engine().submitted().size() == 2; }));
    EXPECT_EQ(fixture.server().active_requests(), 1u);
  }
  ASSERT_TRUE(eventually([&] { return fixture.engine().cancelled().size() == 2; }));
  EXPECT_EQ(fixture.engine().cancelled()[0].reason, engine::CancelReason::kDisconnected);
  EXPECT_TRUE(eventually([&] { return fixture.idle(); }));
  fixture.engine().say(event_of(fixture.engine().submitted()[0], {9}, length_finish(1)));  // late: nobody minds
  EXPECT_EQ(fixture.get("/ping").status, 200);
}

TEST(Generate, AClientThatDoesNotReadIsDroppedAndItsSequenceCancelled) {
  net::HttpServerOptions options;
  options.max_stream_backlog = 64 << 10;
  Fixture fixture(tiny_config(), true, options);
  fixture.engine().set_script(says(std::vector<int32_t>(6000, 5)));  // more than one turn of the loop reads
  RawClient client(fixture.port());
  std::string body = R"({"input_ids":[5],"stream":true})";
  client.say("POST /generate HTTP/1.1\r\nHost: h\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
             body);
  ASSERT_TRUE(eventually([&] { return fixture.engine().submitted().size() == 1; }));
  EXPECT_TRUE(eventually([&] { return fixture.idle(); }));
  EXPECT_TRUE(eventually([&] { return fixture.engine().cancelled().size() == 1; }));
}

TEST(Generate, EventsBeyondOneTurnOfTheLoopKeepTheirOrder) {
  Fixture fixture;
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 20000; ++i) ids.push_back(i % 8000);
  fixture.engine().set_script(says(ids));
  auto response = fixture.post("/generate", R"({"input_ids":[5]})");
  std::string expected = "[0";
  for (size_t i = 1; i < ids.size(); ++i) expected += "," + std::to_string(ids[i]);
  EXPECT_TRUE(at(response.body, "/output_ids") == expected + "]");
}

TEST(Generate, CancelsAreNotLostWhileTheQueueIsFull) {
  Fixture fixture;
  {
    RawClient client(fixture.port());
    std::string body = R"({"input_ids":[5]})";
    client.say("POST /generate HTTP/1.1\r\nHost: h\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
               body);
    ASSERT_TRUE(eventually([&] { return fixture.engine().submitted().size() == 1; }));
    fixture.engine().set_room(0);
  }
  ASSERT_TRUE(eventually([&] { return fixture.idle(); }));
  EXPECT_TRUE(fixture.engine().cancelled().empty());
  fixture.engine().set_room(-1);
  EXPECT_TRUE(eventually([&] { return fixture.engine().cancelled().size() == 1; }));
}

TEST(Generate, LargeBodyIsTokenizedWhileOthersAreServed) {
  Fixture fixture;
  fixture.engine().set_script(says({10}));
  std::string words;
  for (int i = 0; i < 4000; ++i) words += "word ";
  std::string body = R"({"text":[)";
  for (int i = 0; i < 40; ++i) body += (i ? ",\"" : "\"") + words.substr(0, 3000) + "\"";
  body += "]}";
  auto pending = std::async(std::launch::async, [&] { return fixture.post("/generate", body); });
  auto small = fixture.post("/generate", R"({"input_ids":[5]})");
  EXPECT_EQ(small.status, 200);
  auto large = pending.get();
  EXPECT_EQ(large.status, 200) << large.body;
  EXPECT_EQ(at(large.body, "/39/output_ids"), "[10]");
  EXPECT_TRUE(eventually([&] { return fixture.idle(); }));
}

TEST(Generate, PrefillServersOwnAnswerHasLengthZero) {
  ServerConfig config = tiny_config();
  config.role = engine::Role::kPrefill;
  Fixture fixture(config);
  fixture.engine().set_script([](const api::EngineRequest& request, const FakeEngine::Sink& sink) {
    sink(event_of(request, {10}, length_finish(0)));
  });
  auto response = fixture.post(
      "/generate", R"({"input_ids":[[5],[6]],"bootstrap_host":"h","bootstrap_port":null,"bootstrap_room":41})");
  EXPECT_EQ(response.status, 200) << response.body;
  EXPECT_EQ(at(response.body, "/0/meta_info/finish_reason"), R"({"type":"length","length":0})");
  auto requests = fixture.engine().submitted();
  ASSERT_TRUE(requests[1].bootstrap.has_value());
  EXPECT_EQ(requests[0].bootstrap->room, 41u);
  EXPECT_EQ(requests[1].bootstrap->room, 42u);
  EXPECT_FALSE(requests[1].bootstrap->port.has_value());
}

TEST(Generate, RoomsOfNSequencesDifferFromAllOthers) {
  ServerConfig config = tiny_config();
  config.role = engine::Role::kDecode;
  Fixture fixture(config);
  fixture.engine().set_script(says({10}));
  fixture.post("/generate", R"({"input_ids":[[5],[6]],"bootstrap_host":["h","h"],"bootstrap_room":[7,8],
      "bootstrap_port":[1,2],"sampling_params":{"n":2},"return_logprob":true,"logprob_start_len":0})");
  std::vector<uint64_t> rooms;
  for (const auto& request : fixture.engine().submitted()) {
    rooms.push_back(*request.bootstrap->room);
    EXPECT_EQ(request.logprob_start_len, -1) << "decode never gives the prompt's";
  }
  EXPECT_EQ(rooms, (std::vector<uint64_t>{7, 9, 8, 10}));
}

TEST(Generate, DisaggregatedServerRefusesARequestWithoutRoom) {
  ServerConfig config = tiny_config();
  config.role = engine::Role::kDecode;
  Fixture fixture(config);
  auto response = fixture.post("/generate", R"({"input_ids":[5],"bootstrap_host":"h"})");
  EXPECT_EQ(response.status, 400);
  EXPECT_TRUE(at(response.body, "/error/message")
                  .starts_with("Invalid request: Disaggregated request received without boostrap room id."));
  EXPECT_TRUE(fixture.engine().submitted().empty());
}

}  // namespace
}  // namespace tandem::server
