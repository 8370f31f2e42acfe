#include "text/normalizer.h"

#include <gtest/gtest.h>

#include "tests/text/fixtures.h"
#include "text/normalizer_load.h"
#include "text/tokenizer_impl.h"

namespace tandem::text {
namespace {

Result<Normalizer> parse(const std::string& json) {
  auto document = json::Document::parse(R"({"normalizer": )" + json + "}", "small.json");
  EXPECT_TRUE(document.has_value());
  return parse_normalizer(*JsonReader::object(document->root(), "small.json", ""));
}

std::string normalized(const std::string& json, std::string_view text) {
  auto normalizer = parse(json);
  EXPECT_TRUE(normalizer.has_value()) << normalizer.error().message;
  return normalizer ? normalizer->normalize(text) : "";
}

std::string fault_of(const std::string& json) {
  auto normalizer = parse(json);
  return normalizer ? "" : normalizer.error().message;
}

// tests/data/normalizers.json: what Hugging Face tokenizers make of the texts (tools/check_normalizers.py --write),
// where every byte is a token with its value for an id, so that the ids are the normalized text.
TEST(Normalizer, EncodesAsHuggingFaceTokenizersDo) {
  auto document = json::Document::load(TANDEM_SOURCE_DIR "/tests/data/normalizers.json");
  ASSERT_TRUE(document.has_value()) << document.error().message;
  std::string vocab;
  for (int byte = 0; byte < 256; ++byte) {
    std::string spelled = byte_level_encode(static_cast<unsigned char>(byte));
    if (spelled == "\"" || spelled == "\\") spelled.insert(0, "\\");
    vocab += (byte ? ",\"" : "\"") + spelled + "\": " + std::to_string(byte);
  }
  int count = 0;
  for (simdjson::dom::element row : document->root()["cases"].get_array()) {
    const std::string normalizer = simdjson::minify(row["normalizer"]);
    auto tokenizer =
        Tokenizer::parse(R"({"normalizer": )" + normalizer + R"(, "added_tokens": )" +
                             simdjson::minify(document->root()["added_tokens"]) +
                             R"(, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
               "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "merges": [], "vocab": {)" +
                             vocab + "}}}",
                         "", "fixture");
    ASSERT_TRUE(tokenizer.has_value()) << tokenizer.error().message;
    size_t index = 0;
    for (simdjson::dom::element text : document->root()["texts"].get_array()) {
      simdjson::dom::element ids = row["ids"].at(index++);
      if (ids.is_null()) continue;  // the library itself fails there
      EXPECT_EQ((*tokenizer)->encode(std::string_view{text}, false), ids_of(ids)) << normalizer << '\n' << text;
      ++count;
    }
  }
  EXPECT_GT(count, 450);
}

TEST(Normalizer, ComposesAndDecomposes) {
  const std::string decomposed = "e\u0301 \u1100\u1161\u11a8 s\u0323\u0307", composed = "\u00e9 \uac01 \u1e69";
  EXPECT_EQ(normalized(R"({"type": "NFC"})", decomposed), composed);
  EXPECT_EQ(normalized(R"({"type": "NFD"})", composed), decomposed);
  EXPECT_EQ(normalized(R"({"type": "NFC"})", "\ufb01"), "\ufb01");
  EXPECT_EQ(normalized(R"({"type": "NFKC"})", "\ufb01 e\u0301"), "fi \u00e9");
  EXPECT_EQ(normalized(R"({"type": "NFKD"})", "\u00bd\u00e9"), "1\u20442e\u0301");
  EXPECT_EQ(normalized(R"({"type": "NFC"})", "\u0301a"), "\u0301a");
}

TEST(Normalizer, OrdersALongRunOfMarksInBoundedTime) {
  // 2 x 100,000 marks in the wrong order: minutes if each were moved step by step.
  std::string above, below;
  for (int i = 0; i < 100'000; ++i) above += "\u0301", below += "\u0323";
  EXPECT_EQ(normalized(R"({"type": "NFD"})", "x" + above + below), "x" + below + above);
}

TEST(Normalizer, ReplacesEmptyMatchesOncePerPlace) {
  EXPECT_EQ(normalized(R"({"type": "Replace", "pattern": {"Regex": "b*"}, "content": "X"})", "éb é"), "XéX XéX");
  EXPECT_EQ(normalized(R"({"type": "Replace", "pattern": {"String": ""}, "content": "X"})", ""), "");
}

TEST(Normalizer, RefusesWhatWouldGrowTextWithoutBound) {
  std::string step = R"({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"})", steps = step;
  EXPECT_EQ(normalized(R"({"type": "Sequence", "normalizers": [)" + steps + "]}", "ab"), "aaaaaaaaaab");
  for (int i = 0; i < 40; ++i) steps += ", " + step;
  EXPECT_NE(fault_of(R"({"type": "Sequence", "normalizers": [)" + steps + "]}").find("normalizer could make a text"),
            std::string::npos);
}

TEST(Normalizer, NamesWhatItDoesNotUnderstand) {
  EXPECT_NE(fault_of(R"({"type": "StripAccents"})").find("normalizer.type 'StripAccents'"), std::string::npos);
  EXPECT_NE(fault_of(R"({"type": "Prepend"})").find("normalizer.prepend must be a string"), std::string::npos);
  EXPECT_NE(fault_of(R"({"type": "Replace", "content": ""})").find("normalizer.pattern"), std::string::npos);
  EXPECT_NE(fault_of(R"({"type": "Replace", "pattern": {"Regex": "("}, "content": ""})").find("pattern is not under"),
            std::string::npos);
  EXPECT_NE(fault_of(R"({"type": "Strip", "strip_left": 5})").find("strip_left must be true or false"),
            std::string::npos);
  EXPECT_NE(fault_of(R"({"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [5]}]})")
                .find("normalizer.normalizers[0].normalizers[0] must be an object"),
            std::string::npos);
}

}  // namespace
}  // namespace tandem::text
