#include "loadgen/measure.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace tandem::loadgen {
namespace {

// A scripted answer: events at times in milliseconds after the dispatch.
class Script {
 public:
  explicit Script(Expectation expectation) : meter_(expectation, at(0)) { meter_.on_headers(200); }

  Script& event(int ms, std::string_view data) { return bytes(ms, net::sse_event(data)); }
  Script& bytes(int ms, std::string_view bytes) {
    meter_.on_body(bytes, at(ms), parser_);
    return *this;
  }
  // SGLang's native event: the text so far, the tokens so far.
  Script& native(int ms, std::string_view text, int tokens, std::string_view reason = "null") {
    return event(ms, fmt::format(R"({{"text": "{}", "meta_info": {{"id": "x", "finish_reason": {},)"
                                 R"( "completion_tokens": {}}}}})",
                                 text, reason, tokens));
  }
  Script& completion(int ms, std::string_view text, std::string_view reason = "null") {
    return event(ms, fmt::format(R"({{"choices": [{{"index": 0, "text": "{}", "finish_reason": {}}}], "usage": null}})",
                                 text, reason));
  }
  Script& done(int ms) { return event(ms, "[DONE]"); }
  RequestResult finish(int ms = 9999, Status end = Ok{}) { return meter_.finish(std::move(end), at(ms), parser_); }

 private:
  static TimePoint at(int ms) { return TimePoint(std::chrono::seconds(100) + std::chrono::milliseconds(ms)); }
  simdjson::dom::parser parser_;
  ResponseMeter meter_;
};

constexpr const char* kLength = R"({"type": "length", "length": 4})";

Expectation native(int32_t output_len) { return {.dialect = Dialect::kNative, .output_len = output_len}; }
Expectation completions(int32_t output_len) { return {.dialect = Dialect::kCompletions, .output_len = output_len}; }

void expect_itls(const RequestResult& result, std::vector<double> wanted_ms) {
  ASSERT_EQ(result.itls_s.size(), wanted_ms.size());
  for (size_t i = 0; i < wanted_ms.size(); ++i) EXPECT_NEAR(result.itls_s[i] * 1000, wanted_ms[i], 1e-6) << i;
}

TEST(ResponseMeter, NativeGapsAreSharedByTheTokensThatCameWithThem) {
  const RequestResult result = Script(native(6))
                                   .native(50, "A", 1)
                                   .native(70, "A b", 2)
                                   .native(130, "A b c d e", 5)  // three tokens in 60 ms
                                   .native(150, "A b c d e f", 6, kLength)
                                   .done(160)
                                   .finish();
  EXPECT_TRUE(result.success) << result.error;
  EXPECT_NEAR(*result.ttft_s, 0.050, 1e-9);
  EXPECT_NEAR(result.latency_s, 0.160, 1e-9) << "the last event counts, [DONE] included";
  EXPECT_EQ(result.output_len, 6);
  EXPECT_EQ(result.generated_text, "A b c d e f");
  expect_itls(result, {20, 20, 20, 20, 20});
}

TEST(ResponseMeter, NativeEventWithoutTextIsNoFirstTokenAndARepeatGivesItsTimeToTheNext) {
  const RequestResult result = Script(native(4))
                                   .native(10, "", 1)  // half a character
                                   .native(30, "é", 2)
                                   .native(40, "é", 2)  // a repeat
                                   .native(70, "é!", 4, kLength)
                                   .finish();
  EXPECT_TRUE(result.success) << result.error;
  EXPECT_NEAR(*result.ttft_s, 0.030, 1e-9);
  expect_itls(result, {20, 20});
}

TEST(ResponseMeter, TokensThatNeverBecomeTextStillHaveAFirstTokenTime) {
  const RequestResult result = Script(native(1)).native(12, "", 1, kLength).done(15).finish();
  EXPECT_TRUE(result.success) << result.error;
  EXPECT_NEAR(*result.ttft_s, 0.012, 1e-9);
  const RequestResult nothing = Script(native(0)).native(12, "", 0, kLength).finish();
  EXPECT_TRUE(nothing.success) << nothing.error;
  EXPECT_FALSE(nothing.ttft_s);
}

TEST(ResponseMeter, CompletionsGapsAreRawAndTheLengthIsTheRequestedOneWithoutUsage) {
  const RequestResult result = Script(completions(8))
                                   .completion(40, "Once")
                                   .completion(45, "")
                                   .completion(60, " upon a")
                                   .completion(100, " time", R"("length")")
                                   .done(101)
                                   .finish();
  EXPECT_TRUE(result.success) << result.error;
  EXPECT_NEAR(*result.ttft_s, 0.040, 1e-9);
  EXPECT_EQ(result.output_len, 8);
  EXPECT_EQ(result.generated_text, "Once upon a time");
  EXPECT_EQ(result.itl_text_bytes, (std::vector<uint32_t>{7, 5}));
  expect_itls(result, {20, 40});
}

TEST(ResponseMeter, CompletionsUsageGivesTheLengthWhereverItComes) {
  const RequestResult result =
      Script(completions(3))
          .completion(40, "a")
          .completion(50, " b c", R"("length")")
          .event(51, R"({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}})")
          .done(52)
          .finish();
  EXPECT_TRUE(result.success) << result.error;
  EXPECT_EQ(result.output_len, 3);
}

TEST(ResponseMeter, ChatReadsDeltasAndNotTheRoleChunk) {
  const RequestResult result =
      Script({.dialect = Dialect::kChat, .output_len = 2})
          .event(5, R"({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": null}]})")
          .event(25, R"({"choices": [{"delta": {"content": "Hi"}, "finish_reason": null}]})")
          .event(35, R"({"choices": [{"delta": {"content": "!"}, "finish_reason": null}]})")
          .event(36, R"({"choices": [{"delta": {"content": null}, "finish_reason": "length"}]})")
          .done(37)
          .finish();
  EXPECT_TRUE(result.success) << result.error;
  EXPECT_NEAR(*result.ttft_s, 0.025, 1e-9);
  EXPECT_EQ(result.generated_text, "Hi!");
  expect_itls(result, {10});
}

TEST(ResponseMeter, AnswersThatDoNotStreamArriveAtOnce) {
  Expectation whole = native(4);
  whole.stream = false;
  const RequestResult result = Script(whole)
                                   .bytes(80, R"({"text": "a b c d", "meta_info": {"completion_tokens": 4, )")
                                   .bytes(90, R"("finish_reason": {"type": "length", "length": 4}}})")
                                   .finish(95);
  EXPECT_TRUE(result.success) << result.error;
  EXPECT_NEAR(*result.ttft_s, 0.090, 1e-9);
  EXPECT_NEAR(result.latency_s, 0.090, 1e-9);
  EXPECT_TRUE(result.itls_s.empty());
  Expectation chat{.dialect = Dialect::kChat, .stream = false, .output_len = 2};
  const RequestResult message =
      Script(chat)
          .bytes(10, R"({"choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "length"}],)"
                     R"( "usage": {"completion_tokens": 2}})")
          .finish();
  EXPECT_TRUE(message.success) << message.error;
  EXPECT_EQ(message.generated_text, "yes");
  EXPECT_EQ(message.output_len, 2);
}

TEST(ResponseMeter, BytesMayBeCutAnywhere) {
  const std::string all =
      net::sse_event(R"({"text": "é", "meta_info": {"completion_tokens": 1, "finish_reason": null}})") +
      net::sse_event(R"({"text": "é.", "meta_info": {"completion_tokens": 2, "finish_reason": )" +
                     std::string(kLength) + "}}") +
      net::sse_event("[DONE]");
  Script script(native(2));
  for (size_t i = 0; i < all.size(); ++i) script.bytes(int(i), all.substr(i, 1));
  const RequestResult result = script.finish();
  EXPECT_TRUE(result.success) << result.error;
  EXPECT_EQ(result.generated_text, "é.");
  EXPECT_NEAR(result.latency_s, double(all.size() - 1) / 1000, 1e-9);
}

// What SGLang's client counts as successes.
TEST(ResponseMeter, AbortErrorShortAndCutStreamsAreFailuresThatSayWhy) {
  Script abort(native(4));
  abort.native(5, "a", 1).native(9, "a b", 2, R"({"type": "abort", "message": "KV lost"})").done(10);
  EXPECT_EQ(abort.finish().error, "aborted: KV lost");
  EXPECT_EQ(Script(completions(4)).completion(5, "a", R"("abort")").done(6).finish().error, "aborted");
  EXPECT_EQ(Script(native(4)).event(5, R"({"error": {"message": "out of room", "code": 503}})").done(6).finish().error,
            "out of room");
  EXPECT_EQ(Script(native(4)).event(5, R"({"object": "error", "message": "bad"})").finish().error, "bad");
  EXPECT_EQ(Script(native(4)).native(5, "a", 2, kLength).done(6).finish().error, "short answer: 2 of 4 tokens");
  EXPECT_EQ(Script(native(4)).native(5, "a", 4).done(6).finish().error, "the answer ended without a finish reason");
  EXPECT_EQ(Script(native(4)).finish().error, "the answer ended without a finish reason");
  EXPECT_EQ(Script(native(4)).native(5, "a", 1).finish(7, peer_lost("cut off")).error, "cut off");
  EXPECT_NE(Script(native(4)).event(5, "{broken").finish().error.find("not JSON"), std::string::npos);
}

TEST(ResponseMeter, AnEarlyStopIsASuccessWhenItWasAllowed) {
  Expectation may_stop = native(40);
  may_stop.full_length = false;
  const RequestResult result = Script(may_stop).native(5, "a", 2, R"({"type": "stop", "matched": 1})").done(6).finish();
  EXPECT_TRUE(result.success) << result.error;
  EXPECT_EQ(result.output_len, 2);
}

TEST(ResponseMeter, AStatusOtherThan200IsAFailureWithTheServersMessage) {
  auto answer = [](int status, std::string_view body) {
    simdjson::dom::parser parser;
    ResponseMeter meter(native(4), TimePoint{});
    meter.on_headers(status);
    meter.on_body(body, TimePoint{}, parser);
    return meter.finish(Ok{}, TimePoint{}, parser).error;
  };
  EXPECT_EQ(answer(400, R"({"error": {"message": "too long"}})"), "HTTP 400: too long");
  EXPECT_EQ(answer(503, R"({"error": "busy"})"), "HTTP 503: busy");
  EXPECT_EQ(answer(422, R"({"detail": "field x"})"), "HTTP 422: field x");
  EXPECT_EQ(answer(500, "Internal\nServer Error"), "HTTP 500: Internal Server Error");
  EXPECT_EQ(answer(502, ""), "HTTP 502: empty body");
  EXPECT_LT(answer(500, std::string(100000, 'x')).size(), 400u);
}

TEST(ResponseMeter, TheOriginalCountingTakesAnyStreamOf200) {
  Expectation original = native(4);
  original.count_failures_as_success = true;
  RequestResult result = Script(original).event(5, R"({"error": {"message": "out of room"}})").done(6).finish();
  EXPECT_TRUE(result.success);
  EXPECT_EQ(result.output_len, 4) << "the requested length";
  EXPECT_EQ(*result.ttft_s, 0);
  result = Script(original).native(5, "a", 1).native(8, "a b", 2, R"({"type": "abort"})").done(9).finish();
  EXPECT_TRUE(result.success);
  EXPECT_EQ(result.output_len, 2);
  result = Script(original).native(5, "a", 1).finish(7, peer_lost("cut off"));
  EXPECT_EQ(result.error, "cut off") << "a broken connection is an error there too";
}

}  // namespace
}  // namespace tandem::loadgen
