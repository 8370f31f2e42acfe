#include "text/stream_decoder.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/text/fixtures.h"
#include "text/utf8.h"

namespace tandem::text {
namespace {

// Feeds ids in random cuts and checks after each that what came out is whole characters.
std::string stream(std::span<const int32_t> ids, bool skip_special, std::mt19937& random) {
  StreamDecoder decoder(tiny_tokenizer(), skip_special);
  std::string text;
  while (!ids.empty()) {
    size_t count = std::min<size_t>(ids.size(), random() % 4);
    std::string piece = decoder.append(ids.first(count));
    EXPECT_TRUE(is_valid_utf8(piece));
    text += piece;
    ids = ids.subspan(count);
  }
  return text + decoder.finish();
}

TEST(StreamDecoder, ConcatenationEqualsDecodeForFixtureStringsInAnyCut) {
  auto document = json::Document::load(fixture_path("tokenizer.json"));
  ASSERT_TRUE(document.has_value());
  std::mt19937 random(1);
  for (simdjson::dom::element row : document->root().get_array()) {
    std::vector<int32_t> ids = ids_of(row["ids"]);
    EXPECT_EQ(stream(ids, false, random), std::string_view{row["decoded"]});
    EXPECT_EQ(stream(ids, true, random), std::string_view{row["decoded_skip_special"]});
  }
}

TEST(StreamDecoder, ConcatenationEqualsDecodeForRandomIdsWithBrokenBytes) {
  std::mt19937 random(2);
  for (int round = 0; round < 3000; ++round) {
    std::vector<int32_t> ids(random() % 24);
    // Mostly single bytes, which rarely make characters; now and then any id, also out of range.
    for (int32_t& id : ids) id = random() % 8 ? 3 + static_cast<int32_t>(random() % 256) : -2 + random() % 8200;
    bool skip = round % 2;
    EXPECT_EQ(stream(ids, skip, random), tiny_tokenizer().decode(ids, skip)) << "round " << round;
  }
}

TEST(StreamDecoder, HoldsAnIncompleteCharacterBackAndEndsItWithAReplacement) {
  std::vector<int32_t> ids = tiny_tokenizer().encode("\U0001F642", false);
  ASSERT_GE(ids.size(), 2u);
  StreamDecoder whole(tiny_tokenizer(), false);
  for (size_t i = 0; i + 1 < ids.size(); ++i) EXPECT_EQ(whole.append(std::span(&ids[i], 1)), "");
  EXPECT_EQ(whole.append(std::span(&ids.back(), 1)), "\U0001F642");
  EXPECT_EQ(whole.finish(), "");
  StreamDecoder cut(tiny_tokenizer(), false);
  EXPECT_EQ(cut.append(std::span(ids).first(ids.size() - 1)), "");
  EXPECT_EQ(cut.finish(), "\uFFFD");
}

// From the Unicode standard 15.0, table 3-8 to 3-11: replacement of maximal subparts.
TEST(Utf8, ReplacesMaximalSubpartsAsTheStandardSays) {
  EXPECT_EQ(to_valid_utf8("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41");
  EXPECT_EQ(to_valid_utf8("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41");
  EXPECT_EQ(to_valid_utf8("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41\uFFFD\uFFFD\x42");
  EXPECT_EQ(to_valid_utf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), "\uFFFD\uFFFD\uFFFD\uFFFD\x41");
}

}  // namespace
}  // namespace tandem::text
