#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include "tests/text/fixtures.h"

namespace tandem::text {
namespace {

TEST(Tokenizer, EncodesAndDecodesEveryFixtureString) {
  auto document = json::Document::load(fixture_path("tokenizer.json"));
  ASSERT_TRUE(document.has_value()) << document.error().message;
  const Tokenizer& tokenizer = tiny_tokenizer();
  int count = 0;
  for (simdjson::dom::element row : document->root().get_array()) {
    auto text = std::string_view{row["text"]};
    std::vector<int32_t> ids = ids_of(row["ids"]);
    EXPECT_EQ(tokenizer.encode(text, false), ids) << text;
    EXPECT_EQ(tokenizer.decode(ids, false), std::string_view{row["decoded"]}) << text;
    EXPECT_EQ(tokenizer.decode(ids, true), std::string_view{row["decoded_skip_special"]}) << text;
    ++count;
  }
  EXPECT_EQ(count, 192);
}

TEST(Tokenizer, EncodesTheHeldOutText) {
  auto document = json::Document::load(fixture_path("perplexity.json"));
  ASSERT_TRUE(document.has_value()) << document.error().message;
  std::vector<int32_t> ids = ids_of(document->root()["ids"]);
  std::string text = read_bytes(fixture_path("perplexity.txt"));
  EXPECT_EQ(tiny_tokenizer().encode(text, true), ids);
  EXPECT_EQ(tiny_tokenizer().decode(ids, true), text);
}

}  // namespace
}  // namespace tandem::text
