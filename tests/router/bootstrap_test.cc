// api/bootstrap and merge_logprobs: the texts that a router edits.
#include "api/bootstrap.h"

#include <gtest/gtest.h>

#include <random>

#include "base/json.h"
#include "router/merge_logprobs.h"

namespace tandem::api {
namespace {

constexpr auto kGenerate = BodyKind::kGenerate;
constexpr auto kCompletions = BodyKind::kCompletions;
constexpr auto kChat = BodyKind::kChat;

// What the servers get, read back by another parser; dumped canonically by it.
std::string sent(BodyKind kind, std::string body, RoutedBody* out = nullptr) {
  auto routed = prepare_routed_body(kind, body);
  EXPECT_TRUE(routed.has_value()) << routed.error().message;
  if (!routed) return "";
  std::vector<uint64_t> rooms;
  for (size_t i = 0; i < routed->batch_size.value_or(1); ++i) rooms.push_back(uint64_t(100) + i);
  const std::string whole = body + bootstrap_tail(*routed, "10.0.0.1", 8998, rooms);
  auto document = json::Document::parse(whole, "sent");
  EXPECT_TRUE(document.has_value()) << whole;
  if (out) *out = *routed;
  return document ? std::string(simdjson::minify(document->root())) : whole;
}

const std::string kScalar = R"("bootstrap_host":"10.0.0.1","bootstrap_port":8998,"bootstrap_room":100})";
const std::string kTwo =
    R"("bootstrap_host":["10.0.0.1","10.0.0.1"],"bootstrap_port":[8998,8998],"bootstrap_room":[100,101]})";

TEST(Bootstrap, ScalarsForOnePromptArraysForABatch) {
  EXPECT_EQ(sent(kGenerate, R"({"text":"hi"})"), R"({"text":"hi",)" + kScalar);
  EXPECT_EQ(sent(kGenerate, R"( { "text" : ["a", "b"] } )"), R"({"text":["a","b"],)" + kTwo);
  EXPECT_EQ(sent(kGenerate, R"({"input_ids":[1,2,3]})"), R"({"input_ids":[1,2,3],)" + kScalar);
  EXPECT_EQ(sent(kGenerate, R"({"input_ids":[[1,2],[3]]})"), R"({"input_ids":[[1,2],[3]],)" + kTwo);
  EXPECT_EQ(sent(kGenerate, R"({"text":null,"input_ids":[[1,2],[3]]})"),
            R"({"text":null,"input_ids":[[1,2],[3]],)" + kTwo);
  EXPECT_EQ(sent(kGenerate, R"({"text":["only"]})"),
            R"({"text":["only"],"bootstrap_host":["10.0.0.1"],"bootstrap_port":[8998],"bootstrap_room":[100]})");
  EXPECT_EQ(sent(kGenerate, R"({"text":[]})"), R"({"text":[],)" + kScalar) << "the servers refuse it";
  EXPECT_EQ(sent(kGenerate, "{}"), "{" + kScalar);
}

TEST(Bootstrap, CompletionsCountPromptsAndChatCountsN) {
  EXPECT_EQ(sent(kCompletions, R"({"prompt":"a","n":2})"), R"({"prompt":"a","n":2,)" + kScalar);
  EXPECT_EQ(sent(kCompletions, R"({"prompt":["a","b"]})"), R"({"prompt":["a","b"],)" + kTwo);
  EXPECT_EQ(sent(kCompletions, R"({"prompt":[1,2]})"), R"({"prompt":[1,2],)" + kScalar);
  EXPECT_EQ(sent(kCompletions, R"({"prompt":[[1],[2]]})"), R"({"prompt":[[1],[2]],)" + kTwo);
  EXPECT_EQ(sent(kChat, R"({"messages":[{"role":"user","content":"x"}]})"),
            R"({"messages":[{"role":"user","content":"x"}],)" + kScalar);
  EXPECT_EQ(sent(kChat, R"({"n":2,"messages":[]})"), R"({"n":2,"messages":[],)" + kTwo);
  EXPECT_EQ(sent(kChat, R"({"n":1,"messages":[]})"), R"({"n":1,"messages":[],)" + kScalar);
  EXPECT_EQ(sent(kChat, R"({"n":null,"messages":[]})"), R"({"n":null,"messages":[],)" + kScalar);
}

TEST(Bootstrap, AnAbsentPortIsNull) {
  std::string body = R"({"text":"a"})";
  auto routed = prepare_routed_body(kGenerate, body);
  ASSERT_TRUE(routed.has_value());
  const uint64_t room = (uint64_t(1) << 63) - 1;
  EXPECT_EQ(body + bootstrap_tail(*routed, "h\"x", std::nullopt, std::span(&room, 1)),
            R"({"text":"a","bootstrap_host":"h\"x","bootstrap_port":null,"bootstrap_room":9223372036854775807})");
}

TEST(Bootstrap, ReplacesTheFieldsOfAClientWhereverTheyStandAndHoweverTheyAreSpelt) {
  const std::string expected = R"({"text":"a",)" + kScalar;
  EXPECT_EQ(sent(kGenerate, R"({"bootstrap_room":7,"text":"a"})"), expected);
  EXPECT_EQ(sent(kGenerate, R"({"text":"a", "bootstrap_room" : [1, {"x": "}"}] })"), expected);
  EXPECT_EQ(sent(kGenerate, R"({"bootstrap_host":"x","text":"a","bootstrap_port":1 , "bootstrap_room":2})"), expected);
  EXPECT_EQ(sent(kGenerate, R"({"text":"a","bootstrap_host":"x","bootstrap_port":1,"bootstrap_room":2})"), expected);
  EXPECT_EQ(sent(kGenerate, R"({"boot\u0073trap_room":7,"text":"a"})"), expected);
  EXPECT_EQ(sent(kGenerate, R"({"bootstrap_room":7})"), "{" + kScalar);
  EXPECT_EQ(sent(kGenerate, R"({"text":"a","nested":{"bootstrap_room":7}})"),
            R"({"text":"a","nested":{"bootstrap_room":7},)" + kScalar);
}

TEST(Bootstrap, NotesWhatRoutingNeeds) {
  RoutedBody routed;
  std::string body = R"({"text":"say \"hi\"","stream":true,"return_logprob":true})";
  auto result = prepare_routed_body(kGenerate, body);
  ASSERT_TRUE(result.has_value());
  EXPECT_TRUE(result->stream);
  EXPECT_TRUE(result->has_return_logprob);
  EXPECT_EQ(result->text, R"(say \"hi\")");
  body = R"({"text":["first","second"],"stream":false,"return_logprob":false})";
  result = prepare_routed_body(kGenerate, body);
  ASSERT_TRUE(result.has_value());
  EXPECT_FALSE(result->stream);
  EXPECT_FALSE(result->has_return_logprob);
  EXPECT_EQ(result->text, "first");
  body = R"({"messages":[{"role":"user","content":"x"}]})";
  result = prepare_routed_body(kChat, body);
  EXPECT_EQ(result->text, R"([{"role":"user","content":"x"})") << "a longer conversation begins with these bytes";
  body = R"({"input_ids":[1,2]})";
  EXPECT_EQ(prepare_routed_body(kGenerate, body)->text, "");
}

TEST(Bootstrap, RefusesWhatIsNotAJsonObject) {
  for (const char* text : {"",
                           " ",
                           "[]",
                           "null",
                           "\"a\"",
                           "{",
                           "{\"a\"",
                           "{\"a\":",
                           "{\"a\":1",
                           "{\"a\":1,",
                           "{\"a\":1,}",
                           "{a:1}",
                           "{\"a\" 1}",
                           "{\"a\":1}x",
                           "{\"a\":1}{}",
                           "{\"a\":\"b}",
                           "{\"a\":\"b\\",
                           "{\"a\":[1,2}",
                           "{\"a\":{\"b\":[}]}",
                           "{\"a\":nul}",
                           "{\"a\":NaN}",
                           "{\"a\":-Infinity}",
                           "{\"a\":+1}",
                           "{\"a\":}",
                           "{,}",
                           "{\"a\":1 \"b\":2}",
                           "{\"a\":[",
                           "{\"a\":'b'}"}) {
    std::string body = text;
    auto routed = prepare_routed_body(kGenerate, body);
    ASSERT_FALSE(routed.has_value()) << text;
    EXPECT_EQ(routed.error().code, ErrorCode::kInvalidInput);
  }
  std::string deep = "{\"a\":" + std::string(100000, '[');
  EXPECT_FALSE(prepare_routed_body(kGenerate, deep).has_value());
}

TEST(Bootstrap, BoundsTheBatch) {
  std::string body = R"({"n":1000000000,"messages":[]})";
  EXPECT_FALSE(prepare_routed_body(kChat, body).has_value());
  body = R"({"n":99999999999999999999999999,"messages":[]})";
  EXPECT_FALSE(prepare_routed_body(kChat, body).has_value());
  body = "{\"text\":[\"\"";
  for (size_t i = 0; i < kMaxRoutedBatch; ++i) body += ",\"\"";
  body += "]}";
  EXPECT_FALSE(prepare_routed_body(kGenerate, body).has_value());
}

// Every valid document is taken and keeps its meaning; every truncation of it is refused.
TEST(Bootstrap, AgreesWithAnotherParserOverGeneratedDocuments) {
  std::mt19937_64 random(7);
  std::function<json::Value(int)> draw = [&](int depth) -> json::Value {
    switch (random() % (depth > 0 ? 7 : 5)) {
      case 0: return json::Value(int64_t(random() % 2000) - 1000);
      case 1: return json::Value(double(random() % 1000) / 7);
      case 2: {
        std::string text;
        for (size_t i = random() % 20; i > 0; --i) text += "ab\"\\\n{}[],:\u00e9 "[random() % 14];
        std::erase_if(text, [](char c) { return static_cast<unsigned char>(c) >= 0x80; });
        return json::Value(text);
      }
      case 3: return json::Value(random() % 2 == 0);
      case 4: return json::Value(nullptr);
      case 5: {
        json::Array array;
        for (size_t i = random() % 4; i > 0; --i) array.push_back(draw(depth - 1));
        return array;
      }
      default: {
        json::Object object;
        for (size_t i = random() % 4; i > 0; --i) object["k" + std::to_string(random() % 9)] = draw(depth - 1);
        return object;
      }
    }
  };
  for (int i = 0; i < 500; ++i) {
    json::Object object;
    for (const char* key : {"text", "bootstrap_room", "other", "input_ids", "bootstrap_host", "stream", "prompt"}) {
      if (random() % 2) object[key] = draw(3);
    }
    const std::string text = json::dump(object);
    json::Object wanted = object;
    wanted.stable_erase("bootstrap_room");
    wanted.stable_erase("bootstrap_host");
    std::string body = text;
    auto routed = prepare_routed_body(kGenerate, body);
    ASSERT_TRUE(routed.has_value()) << text << ": " << routed.error().message;
    auto got = json::Document::parse(body + "}", "prepared");
    ASSERT_TRUE(got.has_value()) << text << " became " << body;
    simdjson::dom::object got_object;
    ASSERT_FALSE(got->root().get_object().get(got_object));
    EXPECT_EQ(got_object.size(), wanted.size()) << text;
    const std::string minified = std::string(simdjson::minify(got->root()));
    auto expected = json::Document::parse(json::dump(wanted), "wanted");
    EXPECT_EQ(minified, std::string(simdjson::minify(expected->root())));
    std::string cut = text.substr(0, random() % text.size());
    EXPECT_FALSE(prepare_routed_body(kGenerate, cut).has_value()) << text.substr(0, cut.size());
  }
}

}  // namespace
}  // namespace tandem::api

namespace tandem::router {
namespace {

TEST(MergeLogprobs, PutsThePromptsPartInFrontAndKeepsEveryDigit) {
  auto merged = merge_input_logprobs(
      R"({"meta_info":{"input_token_logprobs":[[null,1,null], [-0.12345678901234567,2,null]],"x":1}})",
      R"({"text":"a","meta_info":{"id":"q","input_token_logprobs":[],"output_token_logprobs":[[-1.50,7,null]]}})");
  ASSERT_TRUE(merged.has_value()) << merged.error().message;
  EXPECT_EQ(
      *merged,
      R"({"text":"a","meta_info":{"id":"q","input_token_logprobs":[[null,1,null], [-0.12345678901234567,2,null]],)"
      R"("output_token_logprobs":[[-1.50,7,null]]}})");
  merged = merge_input_logprobs(R"({"meta_info":{"input_token_logprobs":[1]}})",
                                R"({"meta_info":{"input_token_logprobs":[ 2 , 3 ]}})");
  EXPECT_EQ(*merged, R"({"meta_info":{"input_token_logprobs":[1, 2 , 3]}})");
  merged = merge_input_logprobs(R"({"meta_info":{"input_token_logprobs":[1]}})",
                                R"({"meta_info":{"input_token_logprobs":null}})");
  EXPECT_EQ(*merged, R"({"meta_info":{"input_token_logprobs":[1]}})");
}

TEST(MergeLogprobs, GoesThroughBatchesAndRefusesUnequalOnes) {
  auto merged = merge_input_logprobs(
      R"([{"meta_info":{"input_token_logprobs":[1]}},{"meta_info":{"input_token_logprobs":[2]}}])",
      R"([{"meta_info":{"input_token_logprobs":[8]}},{"meta_info":{"input_token_logprobs":[9]}}])");
  ASSERT_TRUE(merged.has_value());
  EXPECT_EQ(*merged,
            R"([{"meta_info":{"input_token_logprobs":[1, 8]}},{"meta_info":{"input_token_logprobs":[2, 9]}}])");
  EXPECT_FALSE(merge_input_logprobs("[]", "{}").has_value());
  EXPECT_FALSE(merge_input_logprobs("nonsense", "{}").has_value());
  EXPECT_FALSE(merge_input_logprobs("{}", "{\"meta_info\":{\"input_token_logprobs\":[1").has_value());
}

TEST(MergeLogprobs, MatchesEventsOfABatchByIndex) {
  EventLogprobMerger merger;
  merger.add_prefill_event(R"({"index":1,"meta_info":{"input_token_logprobs":[11]}})");
  merger.add_prefill_event(R"({"index":0,"meta_info":{"input_token_logprobs":[10]}})");
  merger.add_prefill_event(R"({"index":0,"meta_info":{"input_token_logprobs":[99]}})");
  EXPECT_EQ(merger.merge(R"({"text":"x","meta_info":{"input_token_logprobs":[]},"index":1})"),
            R"({"text":"x","meta_info":{"input_token_logprobs":[11]},"index":1})");
  EXPECT_EQ(merger.merge(R"({"meta_info":{"input_token_logprobs":[5]}})"),
            R"({"meta_info":{"input_token_logprobs":[10, 5]}})");
  EXPECT_EQ(merger.merge(R"({"error":{"message":"x"}})"), R"({"error":{"message":"x"}})");
}

}  // namespace
}  // namespace tandem::router
