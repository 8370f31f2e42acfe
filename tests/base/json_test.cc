#include "base/json.h"

#include <gtest/gtest.h>

namespace tandem::json {
namespace {

TEST(JsonDocument, ReadsAndNamesTheFileOfBrokenText) {
  Result<Document> good = Document::parse(R"({"a": [1, 2]})", "config.json");
  ASSERT_TRUE(good);
  EXPECT_EQ(int64_t(good->root()["a"].at(1)), 2);

  Result<Document> broken = Document::parse("{\"a\": ", "config.json");
  ASSERT_FALSE(broken);
  EXPECT_NE(broken.error().message.find("config.json"), std::string::npos);
}

TEST(JsonDocument, EmptyTextIsRefused) { EXPECT_FALSE(Document::parse({}, "config.json")); }

TEST(JsonDocument, MissingFileIsNotFound) {
  EXPECT_EQ(Document::load("/nonexistent/config.json").error().code, ErrorCode::kNotFound);
}

TEST(JsonDump, EscapesAndKeepsUtf8) {
  Object object;
  object["text"] = "a\"\n\u00e4";
  EXPECT_EQ(dump(object), "{\"text\":\"a\\\"\\n\u00e4\"}");
}

}  // namespace
}  // namespace tandem::json
