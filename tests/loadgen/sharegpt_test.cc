#include "loadgen/sharegpt.h"

#include <gtest/gtest.h>

namespace tandem::loadgen {
namespace {

TEST(ShareGpt, AListGivesTheFirstTwoTurnsOfEachConversation) {
  auto parsed = parse_sharegpt(R"([
    {"id": "a", "conversations": [{"from": "human", "value": "Q1"}, {"from": "gpt", "value": "A1"}, {"value": "Q2"}]},
    {"conversation": [{"value": "é\n"}, {"content": "A2"}]},
    {"conversations": [{"value": "alone"}]}, {"conversations": []}, {"id": "none"}])",
                               "list.json");
  ASSERT_TRUE(parsed) << parsed.error().message;
  ASSERT_EQ(parsed->size(), 2u);
  EXPECT_EQ((*parsed)[0].prompt, "Q1");
  EXPECT_EQ((*parsed)[0].answer, "A1");
  EXPECT_EQ((*parsed)[1].prompt, "é\n");
  EXPECT_EQ((*parsed)[1].answer, "A2");
}

TEST(ShareGpt, OneConversationALineWithBlankLinesAndNoLastLineEnd) {
  auto parsed = parse_sharegpt(
      "\xEF\xBB\xBF{\"conversations\": [{\"value\": \"a\"}, {\"value\": \"b\"}]}\r\n\n  \n"
      "{\"conversations\": [{\"value\": \"c\"}, {\"value\": \"d\"}]}",
      "lines.jsonl");
  ASSERT_TRUE(parsed) << parsed.error().message;
  ASSERT_EQ(parsed->size(), 2u);
  EXPECT_EQ((*parsed)[1].prompt, "c");
}

TEST(ShareGpt, EachFaultNamesTheFileAndThePlace) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "f: empty"},
      {"  \n", "f: empty"},
      {"[{\"conversations\": [", "f: not valid JSON"},
      {"[1]", "f: entry 0: not an object"},
      {"[{\"conversations\": 3}]", "f: entry 0: `conversations` is not a list"},
      {"[{\"conversations\": [1, 2]}]", "f: entry 0: a turn is not an object"},
      {"[{\"conversations\": [{\"value\": 1}, {\"value\": \"b\"}]}]", "f: entry 0: a turn has no text `value`"},
      {"[]", "f: no conversation with two turns"},
      {"{\"conversations\": [{\"value\": \"a\"}, {\"value\": \"b\"}]}\n{oops}\n", "f: line 2: not valid JSON"},
      {"{\"a\": 1}\n[1]\n", "f: line 2: not an object"},
  };
  for (const auto& [text, wanted] : cases) {
    auto parsed = parse_sharegpt(text, "f");
    ASSERT_FALSE(parsed) << text;
    EXPECT_EQ(parsed.error().message.substr(0, std::string_view(wanted).size()), wanted) << text;
  }
}

TEST(ShareGpt, AMissingFileIsNamed) {
  auto parsed = load_sharegpt("/no/such/file.json");
  ASSERT_FALSE(parsed);
  EXPECT_NE(parsed.error().message.find("/no/such/file.json"), std::string::npos);
}

}  // namespace
}  // namespace tandem::loadgen
