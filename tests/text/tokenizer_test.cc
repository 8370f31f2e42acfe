#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/text/fixtures.h"
#include "text/regex.h"
#include "text/tokenizer_impl.h"

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

TEST(Tokenizer, PutsBeginOfSentenceFirstWhereTheModelAsksForIt) {
  const Tokenizer& tokenizer = tiny_tokenizer();
  ASSERT_TRUE(tokenizer.bos_id().has_value());
  EXPECT_EQ(tokenizer.encode("", true), std::vector<int32_t>{*tokenizer.bos_id()});
  EXPECT_EQ(tokenizer.encode("", false), std::vector<int32_t>{});
  EXPECT_EQ(tokenizer.eos_id(), tokenizer.token_id("<｜end▁of▁sentence｜>"));
  EXPECT_EQ(tokenizer.vocab_size(), 8192);
}

TEST(Tokenizer, KnowsSpecialTokensAndBytes) {
  const Tokenizer& tokenizer = tiny_tokenizer();
  EXPECT_TRUE(tokenizer.is_special(0));
  EXPECT_FALSE(tokenizer.is_special(8180));  // <｜User｜> is added, not special
  EXPECT_EQ(tokenizer.token_bytes(8180), "<｜User｜>");
  EXPECT_EQ(tokenizer.token_bytes(*tokenizer.token_id("Ġa")), " a");
  for (int32_t id : {-1, 8192, INT32_MIN, INT32_MAX}) {
    EXPECT_EQ(tokenizer.token_bytes(id), "");
    EXPECT_FALSE(tokenizer.is_special(id));
  }
  EXPECT_FALSE(tokenizer.token_id("no such token").has_value());
  EXPECT_EQ(tokenizer.decode(std::vector<int32_t>{67, -5, 9000, 67}, false), "aa");
}

TEST(Tokenizer, EncodesBytesThatAreNotTextAsReplacements) {
  EXPECT_EQ(tiny_tokenizer().encode("a\xFFz", false), tiny_tokenizer().encode("a\uFFFDz", false));
}

TEST(Tokenizer, ALongWordIsNotQuadratic) {
  // 1 MiB of one word: minutes if merging were quadratic, well under a second here.
  std::string word(1 << 20, 'e');
  for (size_t i = 0; i < word.size(); i += 3) word[i] = "thnos"[i % 5];
  std::vector<int32_t> ids = tiny_tokenizer().encode(word, false);
  EXPECT_EQ(tiny_tokenizer().decode(ids, false), word);
}

TEST(Tokenizer, EncodesTheSameFromManyThreads) {
  std::string text = read_bytes(fixture_path("perplexity.txt"));
  const std::vector<int32_t> expected = tiny_tokenizer().encode(text, false);
  std::vector<int> same(4, 0);
  {
    std::vector<std::jthread> threads;
    for (int& result : same) {
      threads.emplace_back([&] {
        const Tokenizer& tokenizer = tiny_tokenizer();
        result = tokenizer.encode(text, false) == expected && tokenizer.decode(expected, false) == text;
      });
    }
  }
  EXPECT_EQ(same, std::vector<int>(4, 1));
}

// A tokenizer of the 256 bytes and a few merges, with the given members replaced or added.
std::string small(const std::string& members, const std::string& model = R"("merges": ["a b", "ab c"])") {
  std::string vocab;
  for (int byte = 0; byte < 256; ++byte) {
    std::string spelled = byte_level_encode(static_cast<unsigned char>(byte));
    if (spelled == "\"" || spelled == "\\") spelled.insert(0, "\\");
    vocab += '"' + spelled + "\": " + std::to_string(byte) + ", ";
  }
  vocab += R"("ab": 256, "abc": 257, "bc": 258)";
  return R"({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
             "decoder": {"type": "ByteLevel"}, )" +
         members + R"("model": {"type": "BPE", "vocab": {)" + vocab + "}, " + model + "}}";
}

std::vector<int32_t> encode_small(const std::string& json, std::string_view text, const std::string& config = "") {
  auto tokenizer = Tokenizer::parse(json, config, "small.json");
  EXPECT_TRUE(tokenizer.has_value()) << tokenizer.error().message;
  return tokenizer ? (*tokenizer)->encode(text, true) : std::vector<int32_t>{};
}

using Ids = std::vector<int32_t>;

TEST(Tokenizer, ReadsMergesInBothForms) {
  EXPECT_EQ(encode_small(small(""), "abcab"), (Ids{257, 256}));
  EXPECT_EQ(encode_small(small("", R"("merges": [["b", "c"], ["a", "b"]])"), "abcab"), (Ids{'a', 258, 256}));
}

TEST(Tokenizer, IgnoreMergesTakesWholeWordsFromTheVocabulary) {
  std::string merges = R"("merges": ["b c"])";
  EXPECT_EQ(encode_small(small("", merges), "abc"), (Ids{'a', 258}));
  EXPECT_EQ(encode_small(small("", merges + R"(, "ignore_merges": true)"), "abc"), (Ids{257}));
}

TEST(Tokenizer, AddedTokensHonourTheirFlags) {
  std::string added = R"("added_tokens": [
      {"id": 300, "content": "<x>", "special": true, "normalized": false},
      {"id": 301, "content": "<l>", "lstrip": true}, {"id": 302, "content": "<r>", "rstrip": true},
      {"id": 303, "content": "word", "single_word": true}, {"id": 304, "content": "<x>y"}], )";
  std::string json = small(added, R"("merges": [])");
  EXPECT_EQ(encode_small(json, "a<x>b"), (Ids{'a', 300, 'b'}));
  // What is not normalized is found first, also inside of a longer one.
  EXPECT_EQ(encode_small(json, "<x>y"), (Ids{300, 'y'}));
  EXPECT_EQ(encode_small(json, "a \n<l>\tb"), (Ids{'a', 301, '\t', 'b'}));
  EXPECT_EQ(encode_small(json, "a\t<r> \u00a0b"), (Ids{'a', '\t', 302, 'b'}));
  EXPECT_EQ(encode_small(json, "a.word.b"), (Ids{'a', '.', 303, '.', 'b'}));
  EXPECT_EQ(encode_small(json, "word"), (Ids{303}));
  EXPECT_EQ(encode_small(json, "sword").size(), 5u);
  EXPECT_EQ(encode_small(json, "wordé").size(), 6u);
}

TEST(Tokenizer, TakesBeginOfSentenceFromConfigOrTemplate) {
  std::string post = R"("post_processor": {"type": "TemplateProcessing", "single": [
      {"SpecialToken": {"id": "a", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]}, )";
  EXPECT_EQ(encode_small(small(post), "x"), (Ids{'a', 'x'}));
  EXPECT_EQ(encode_small(small(post), "x", R"({"add_bos_token": false})"), (Ids{'x'}));
  EXPECT_EQ(encode_small(small(""), "x", R"({"add_bos_token": true, "bos_token": "b"})"), (Ids{'b', 'x'}));
  EXPECT_EQ(encode_small(small(""), "x", R"({"bos_token": {"content": "b"}})"), (Ids{'x'}));
}

// Expected values from Hugging Face tokenizers 0.23.3.
TEST(Tokenizer, PreTokenizersCutAsTheirBehavioursSay) {
  auto cut = [](const std::string& steps, std::string_view text) {
    // The words: each letter pair merges unless a cut is between.
    std::string json = small("", R"("merges": [])");
    size_t at = json.find(R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true})");
    json.replace(at, 67,
                 R"({"type": "Sequence", "pretokenizers": [)" + steps +
                     R"(, {"type": "ByteLevel", "add_prefix_space": true, "use_regex": false}]})");
    std::string words;
    // The prefix space that every word gets shows the cuts.
    for (int32_t id : encode_small(json, text)) words += static_cast<char>(id);
    return words;
  };
  auto split = [](const std::string& behavior, const std::string& invert = "false") {
    return R"({"type": "Split", "pattern": {"String": "-"}, "behavior": ")" + behavior + R"(", "invert": )" + invert +
           "}";
  };
  EXPECT_EQ(cut(split("Isolated"), "ab--c-"), " ab - - c -");
  EXPECT_EQ(cut(split("Removed"), "ab--c-"), " ab c");
  EXPECT_EQ(cut(split("Removed", "true"), "ab--c-"), " - - -");
  EXPECT_EQ(cut(split("Contiguous"), "ab--c-"), " ab -- c -");
  EXPECT_EQ(cut(split("MergedWithPrevious"), "ab--c-"), " ab- - c-");
  EXPECT_EQ(cut(split("MergedWithNext"), "-ab--c-"), " -ab - -c -");
  EXPECT_EQ(cut(R"({"type": "Digits", "individual_digits": false})", "a12b3"), " a 12 b 3");
  EXPECT_EQ(cut(R"({"type": "Digits", "individual_digits": true})", "a12b3"), " a 1 2 b 3");
}

std::string fault_of(const std::string& json, const std::string& config = "") {
  auto tokenizer = Tokenizer::parse(json, config, "dir/small.json");
  return tokenizer ? "" : tokenizer.error().message;
}

TEST(Tokenizer, NamesFileAndFaultOfWhatItDoesNotUnderstand) {
  auto added = [](const std::string& entry) { return small(R"("added_tokens": [)" + entry + "], "); };
  const std::vector<std::pair<std::string, std::string>> faults = {
      {"", "dir/small.json: not valid JSON"},
      {"[]", "dir/small.json: the file must be an object"},
      {"{}", "decoder must be an object"},
      {small("").substr(0, 1500), "not valid JSON"},
      {small(R"("normalizer": {"type": "Nmt"}, )"), "normalizer.type 'Nmt' is not understood"},
      {small(R"("normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Precompiled"}]}, )"),
       "normalizer.normalizers[1].type 'Precompiled' is not understood"},
      {small(R"("truncation": {"max_length": 5}, )"), "truncation is not understood"},
      {small(R"("post_processor": {"type": "BertProcessing"}, )"), "post_processor.type 'BertProcessing'"},
      {small(R"("post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {}},
              {"SpecialToken": {"id": "a"}}]}, )"),
       "puts 'a' behind the text"},
      {small(R"("post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<no>"}}]}, )"),
       "'<no>'"},
      {small("", R"("merges": ["a b"], "byte_fallback": true)"), "model.byte_fallback is not understood"},
      {small("", R"("merges": ["a b"], "dropout": 0.1)"), "model.dropout"},
      {small("", R"("merges": ["a b"], "end_of_word_suffix": "</w>")"), "model.end_of_word_suffix '</w>'"},
      {small("", R"("merges": ["a zz"])"), "model.merges[0] needs 'zz'"},
      {small("", R"("merges": ["a b", "a c"])"), "model.merges[1] needs 'ac'"},
      {small("", R"("merges": ["a"])"), "'a' is not two tokens"},
      {small("", R"("merges": [["a"]])"), "model.merges [0]"},
      {small("", R"("merges": 5)"), "model.merges must be an array"},
      {added(R"({"id": 7, "content": "<x>"})"), "added_tokens[0].id 7 already belongs"},
      {added(R"({"id": 300, "content": "a"})"), "is 300, but 'a' is already 97"},
      {added(R"({"id": -1, "content": "<x>"})"), "added_tokens[0].id must be a number"},
      {added(R"({"id": 99999999, "content": "<x>"})"), "added_tokens[0].id must be a number"},
      {added(R"({"id": 300, "content": ""})"), "added_tokens[0].content is empty"},
      {added(R"({"id": 300})"), "added_tokens[0].content must be a string"},
      {added("5"), "added_tokens[0] must be an object"},
  };
  for (const auto& [json, fault] : faults) {
    std::string message = fault_of(json);
    EXPECT_TRUE(message.starts_with("dir/small.json: ")) << message;
    EXPECT_NE(message.find(fault), std::string::npos) << message << "\nwanted: " << fault;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
  EXPECT_NE(fault_of(small(""), "{").find("dir/tokenizer_config.json: not valid JSON"), std::string::npos);
  EXPECT_NE(fault_of(small(""), R"({"bos_token": "<no>"})").find("dir/tokenizer_config.json: bos_token"),
            std::string::npos);
  EXPECT_NE(fault_of(small(""), R"({"add_bos_token": true})").find("add_bos_token"), std::string::npos);
}

TEST(Tokenizer, NamesPreTokenizersItDoesNotUnderstand) {
  auto with = [](const std::string& pre) {
    std::string json = small("");
    return json.replace(json.find(R"({"type": "ByteLevel", "add_prefix_space")"), 67, pre);
  };
  auto split = [&](const std::string& pattern, const std::string& behavior) {
    return with(R"({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": )" + pattern +
                R"(, "behavior": ")" + behavior + R"("}, {"type": "ByteLevel"}]})");
  };
  const std::vector<std::pair<std::string, std::string>> faults = {
      {with(R"({"type": "Metaspace"})"), "pre_tokenizer.type 'Metaspace' is not understood"},
      {with(R"({"type": "Digits"})"), "has no ByteLevel"},
      {with(R"({"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "Digits"}]})"),
       "behind ByteLevel"},
      {split(R"({"Regex": "a(b"})", "Isolated"), "pre_tokenizer.pretokenizers[0].pattern is not understood: regular"},
      {split(R"({"Regex": "[a[b]]"})", "Isolated"), "nested classes"},
      {split(R"({"Regex": "\\h"})", "Isolated"), "\\h is not understood"},
      {split(R"({"String": "a"})", "Scattered"), "behavior 'Scattered'"},
      {split(R"({})", "Isolated"), "pattern.String must be a string"},
  };
  for (const auto& [json, fault] : faults) {
    EXPECT_NE(fault_of(json).find(fault), std::string::npos) << fault_of(json) << "\nwanted: " << fault;
  }
}

TEST(Tokenizer, LoadNamesAMissingFile) {
  auto tokenizer = Tokenizer::load("/nonexistent/tokenizer.json");
  ASSERT_FALSE(tokenizer.has_value());
  EXPECT_EQ(tokenizer.error().code, ErrorCode::kNotFound);
  EXPECT_NE(tokenizer.error().message.find("/nonexistent/tokenizer.json"), std::string::npos);
}

TEST(Regex, TranslatesWhatOnigurumaMeansByWhiteSpace) {
  auto translated = translate_onig(R"([^\s\w]|\S\\s)");
  ASSERT_TRUE(translated.has_value());
  EXPECT_EQ(*translated, R"([^\p{White_Space}\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]|\P{White_Space}\\s)");
}

}  // namespace
}  // namespace tandem::text
