#include "tests/server/support.h"

namespace tandem::server {
namespace {

using namespace testing;

std::vector<int32_t> ids_of(const std::string& text) { return tiny_tokenizer()->encode(text, false); }

constexpr const char* kHello = R"({"model":"any","messages":[{"role":"user","content":"Hello"}])";

TEST(Chat, RendersTheTemplateAndAnswersWithUsage) {
  Fixture fixture;
  std::vector<int32_t> ids = ids_of("Hi there");
  ids.push_back(1);
  fixture.engine().set_script(says(ids, stop_token(1)));
  auto response = fixture.post("/v1/chat/completions", std::string(kHello) + "}");
  ASSERT_EQ(response.status, 200) << response.body;
  EXPECT_EQ(fixture.engine().submitted()[0].input_ids, (std::vector<int32_t>{0, 8180, 1497, 8181}));
  EXPECT_EQ(at(response.body, "/object"), "chat.completion");
  EXPECT_EQ(at(response.body, "/model"), "any");
  EXPECT_EQ(at(response.body, "/id"), fixture.engine().submitted()[0].rid);
  EXPECT_EQ(at(response.body, "/choices/0/message/role"), "assistant");
  EXPECT_EQ(at(response.body, "/choices/0/message/content"), "Hi there");
  EXPECT_EQ(at(response.body, "/choices/0/message/tool_calls"), "null");
  EXPECT_EQ(at(response.body, "/choices/0/finish_reason"), "stop");
  EXPECT_EQ(at(response.body, "/choices/0/matched_stop"), "1");
  EXPECT_EQ(at(response.body, "/usage/prompt_tokens"), "4");
  EXPECT_EQ(at(response.body, "/usage/completion_tokens"), std::to_string(ids.size()));
  EXPECT_EQ(at(response.body, "/usage/prompt_tokens_details"), "null");
  EXPECT_EQ(at(response.body, "/metadata/weight_version"), "default");
}

TEST(Chat, RunsToTheContextLimitUnlessToldOtherwise) {
  Fixture fixture;
  fixture.engine().set_script(says({10}));
  fixture.post("/v1/chat/completions", std::string(kHello) + "}");
  fixture.post("/v1/chat/completions", std::string(kHello) + R"(,"max_completion_tokens":5})");
  EXPECT_EQ(fixture.engine().submitted()[0].sampling->max_new_tokens, 4096 - 6 + 5 - 4 - 1);
  EXPECT_EQ(fixture.engine().submitted()[1].sampling->max_new_tokens, 5);
}

TEST(Chat, TakesSamplingDefaultsOfTheModel) {
  ServerConfig config = tiny_config();
  config.chat_defaults.temperature = 0.6;
  config.chat_defaults.top_p = 0.95;
  Fixture fixture(config);
  fixture.engine().set_script(says({10}));
  fixture.post("/v1/chat/completions", std::string(kHello) + R"(,"top_p":0.5})");
  EXPECT_EQ(fixture.engine().submitted()[0].sampling->temperature, 0.6);
  EXPECT_EQ(fixture.engine().submitted()[0].sampling->top_p, 0.5);
}

TEST(Chat, StreamsRoleThenContentThenFinishThenUsage) {
  Fixture fixture;
  fixture.engine().set_script(says(ids_of("Hi there")));
  auto response = fixture.post("/v1/chat/completions",
                               std::string(kHello) + R"(,"stream":true,"stream_options":{"include_usage":true}})");
  auto events = events_of(response.body);
  ASSERT_GE(events.size(), 5u) << response.body;
  EXPECT_EQ(at(events[0], "/object"), "chat.completion.chunk");
  EXPECT_EQ(at(events[0], "/choices/0/delta/role"), "assistant");
  EXPECT_EQ(at(events[0], "/choices/0/delta/content"), "");
  EXPECT_EQ(at(events[0], "/usage"), "null");
  std::string text;
  for (size_t i = 1; i + 3 < events.size(); ++i) {
    EXPECT_EQ(at(events[i], "/choices/0/delta/role"), "null");
    EXPECT_EQ(at(events[i], "/choices/0/finish_reason"), "null");
    text += at(events[i], "/choices/0/delta/content");
  }
  EXPECT_EQ(text, "Hi there");
  const std::string& finish = events[events.size() - 3];
  EXPECT_EQ(at(finish, "/choices/0/delta/content"), "null");
  EXPECT_EQ(at(finish, "/choices/0/finish_reason"), "length");
  const std::string& usage = events[events.size() - 2];
  EXPECT_EQ(at(usage, "/choices"), "[]");
  EXPECT_EQ(at(usage, "/usage/prompt_tokens"), "4");
  EXPECT_EQ(events.back(), "[DONE]");
}

TEST(Chat, ContinuousUsageIsInEveryChunk) {
  Fixture fixture;
  fixture.engine().set_script(says(ids_of("Hi there")));
  auto events =
      events_of(fixture
                    .post("/v1/chat/completions",
                          std::string(kHello) + R"(,"stream":true,"stream_options":{"continuous_usage_stats":true}})")
                    .body);
  EXPECT_EQ(at(events[1], "/usage/completion_tokens"), "1");
  EXPECT_EQ(at(events[1], "/usage/prompt_tokens"), "4");
}

TEST(Chat, LogprobsHaveTokenBytesAndAlternatives) {
  Fixture fixture;
  std::vector<int32_t> ids = ids_of("Hi");
  fixture.engine().set_script([ids](const api::EngineRequest& request, const FakeEngine::Sink& sink) {
    EXPECT_TRUE(request.return_logprob);
    EXPECT_EQ(request.top_logprobs_num, 1);
    api::EngineEvent event = event_of(request, {ids[0]}, length_finish(1));
    api::TokenLogprob logprob;
    logprob.token = ids[0], logprob.logprob = -0.25f, logprob.top = {{ids[0], -0.25f}};
    event.logprobs = {logprob};
    sink(event);
  });
  for (const char* stream : {"false", "true"}) {
    auto response = fixture.post("/v1/chat/completions",
                                 std::string(kHello) + R"(,"logprobs":true,"top_logprobs":1,"stream":)" + stream + "}");
    std::string body = std::string(stream) == "true" ? events_of(response.body)[1] : response.body;
    EXPECT_EQ(at(body, "/choices/0/logprobs/content/0/logprob"), "-0.25") << body;
    std::string token = tiny_tokenizer()->decode({&ids[0], 1}, false);
    EXPECT_EQ(at(body, "/choices/0/logprobs/content/0/token"), token);
    EXPECT_EQ(at(body, "/choices/0/logprobs/content/0/top_logprobs/0/token"), token);
    EXPECT_EQ(at(body, "/choices/0/logprobs/content/0/bytes/0"), std::to_string(static_cast<int>(token[0])));
  }
}

TEST(Chat, ErrorsAreFlatAndStreamedOnesAreWrapped) {
  Fixture fixture;
  auto response = fixture.post("/v1/chat/completions", R"({"messages":[]})");
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(
      response.body,
      R"({"object":"error","message":"Messages cannot be empty.","type":"BadRequestError","param":null,"code":400})");
  auto streamed = fixture.post("/v1/chat/completions", R"({"messages":[],"stream":true})");
  EXPECT_EQ(streamed.status, 200);
  auto events = events_of(streamed.body);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(at(events[0], "/error/message"), "Messages cannot be empty.");
  EXPECT_EQ(events[1], "[DONE]");
}

TEST(Chat, AbortWithAStatusIsAnErrorAlsoInAStream) {
  Fixture fixture;
  fixture.engine().set_script([](const api::EngineRequest& request, const FakeEngine::Sink& sink) {
    sink(event_of(request, {}, abort_finish("peer lost", 500)));
  });
  EXPECT_EQ(fixture.post("/v1/chat/completions", std::string(kHello) + "}").status, 500);
  auto events = events_of(fixture.post("/v1/chat/completions", std::string(kHello) + R"(,"stream":true})").body);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(at(events[0], "/error/code"), "500");
}

TEST(Chat, NeedsTheJsonContentType) {
  Fixture fixture;
  auto response =
      fixture.call("POST", "/v1/chat/completions", std::string(kHello) + "}", {{"Content-Type", "text/plain"}});
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(at(response.body, "/object"), "error");
  EXPECT_EQ(at(response.body, "/type"), "Bad Request");
}

TEST(Completions, AnswersABatchWithPromptMajorIndicesAndCountsEachPromptOnce) {
  Fixture fixture;
  fixture.engine().set_script([](const api::EngineRequest& request, const FakeEngine::Sink& sink) {
    sink(event_of(request, ids_of("x"), length_finish(1)));
  });
  auto response = fixture.post("/v1/completions", R"({"model":"m","prompt":[[5,6],[7]],"n":2,"max_tokens":1})");
  ASSERT_EQ(response.status, 200) << response.body;
  EXPECT_EQ(at(response.body, "/object"), "text_completion");
  EXPECT_EQ(at(response.body, "/choices/3/index"), "3");
  EXPECT_EQ(at(response.body, "/choices/3/text"), "x");
  EXPECT_EQ(at(response.body, "/usage/prompt_tokens"), "3");
  EXPECT_EQ(at(response.body, "/usage/completion_tokens"), "4");
}

TEST(Completions, DefaultIsSixteenTokens) {
  Fixture fixture;
  fixture.engine().set_script(says({10}));
  fixture.post("/v1/completions", R"({"prompt":"Hi"})");
  EXPECT_EQ(fixture.engine().submitted()[0].sampling->max_new_tokens, 16);
  EXPECT_EQ(fixture.engine().submitted()[0].input_ids, tiny_tokenizer()->encode("Hi", true));
}

TEST(Completions, StreamsDeltasAndTheLastOneFinishes) {
  Fixture fixture;
  fixture.engine().set_script(says(ids_of("Hi there")));
  auto events = events_of(fixture.post("/v1/completions", R"({"prompt":"Hi","stream":true})").body);
  std::string text;
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    text += at(events[i], "/choices/0/text");
    EXPECT_EQ(at(events[i], "/choices/0/finish_reason"), i + 2 < events.size() ? "null" : "length");
  }
  EXPECT_EQ(text, "Hi there");
  EXPECT_EQ(events.back(), "[DONE]");
}

TEST(Completions, EchoPutsThePromptInFront) {
  Fixture fixture;
  fixture.engine().set_script(says(ids_of(" there")));
  auto text = fixture.post("/v1/completions", R"({"prompt":"Hi","echo":true})");
  EXPECT_EQ(at(text.body, "/choices/0/text"), "Hi there");
  std::string ids = std::to_string(ids_of("Hi")[0]);
  auto tokens = fixture.post("/v1/completions", R"({"prompt":[)" + ids + R"(],"echo":true})");
  EXPECT_EQ(at(tokens.body, "/choices/0/text"),
            tiny_tokenizer()->decode(std::vector{ids_of("Hi")[0]}, true) + " there");
}

TEST(Completions, LogprobsAreFourLists) {
  Fixture fixture;
  std::vector<int32_t> ids = ids_of("Hi");
  fixture.engine().set_script([ids](const api::EngineRequest& request, const FakeEngine::Sink& sink) {
    api::EngineEvent event = event_of(request, {ids[0]}, length_finish(1));
    api::TokenLogprob logprob;
    logprob.token = ids[0], logprob.logprob = -0.25f, logprob.top = {{ids[0], -0.25f}};
    event.logprobs = {logprob};
    sink(event);
  });
  auto response = fixture.post("/v1/completions", R"({"prompt":"Hi","logprobs":1})");
  std::string token = tiny_tokenizer()->decode({&ids[0], 1}, false);
  EXPECT_EQ(at(response.body, "/choices/0/logprobs/tokens/0"), token);
  EXPECT_EQ(at(response.body, "/choices/0/logprobs/token_logprobs"), "[-0.25]");
  EXPECT_EQ(at(response.body, "/choices/0/logprobs/top_logprobs/0/" + token), "-0.25");
  EXPECT_EQ(at(response.body, "/choices/0/logprobs/text_offset"), "[-1]");
}

TEST(Completions, CachedTokensAreReportedOnlyWhenAsked) {
  auto script = [](const api::EngineRequest& request, const FakeEngine::Sink& sink) {
    api::EngineEvent event = event_of(request, {10}, length_finish(1));
    event.cached_tokens = 3;
    sink(event);
  };
  Fixture silent;
  silent.engine().set_script(script);
  EXPECT_EQ(at(silent.post("/v1/completions", R"({"prompt":[5,6,7,8]})").body, "/usage/prompt_tokens_details"), "null");
  ServerConfig config = tiny_config();
  config.enable_cache_report = true;
  Fixture open(config);
  open.engine().set_script(script);
  EXPECT_EQ(
      at(open.post("/v1/completions", R"({"prompt":[5,6,7,8]})").body, "/usage/prompt_tokens_details/cached_tokens"),
      "3");
}

}  // namespace
}  // namespace tandem::server
