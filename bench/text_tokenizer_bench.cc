// Speed of encoding, decoding and streaming on one thread: text_tokenizer_bench [TOKENIZER_JSON] [benchmark flags].
// Text: the held-out prose, the same as one word without spaces, and C++ source. Bytes per second are bytes of text.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>

#include "text/stream_decoder.h"
#include "text/tokenizer.h"

namespace {

using tandem::text::Tokenizer;

std::string repeated(const std::string& path, size_t bytes) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  content << file.rdbuf();
  std::string text;
  while (!content.str().empty() && text.size() < bytes) text += content.str();
  return text;
}

std::string without_spaces(const std::string& text) {
  std::string word;
  for (char c : text) {
    if ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') word += c;
  }
  return word;
}

// What is measured must be right: the round trip.
void encode(benchmark::State& state, const Tokenizer& tokenizer, const std::string& text) {
  size_t tokens = 0;
  for (auto _ : state) tokens = tokenizer.encode(text, false).size();
  if (tokenizer.decode(tokenizer.encode(text, false), false) != text) state.SkipWithError("round trip differs");
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
  state.counters["bytes_per_token"] = static_cast<double>(text.size()) / static_cast<double>(tokens);
}

void decode(benchmark::State& state, const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> ids = tokenizer.encode(text, false);
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer.decode(ids, true));
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
}

// One token at a time, as a server sees them, with two stop strings.
void stream(benchmark::State& state, const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> ids = tokenizer.encode(text, false);
  for (auto _ : state) {
    tandem::text::StreamDecoder decoder(tokenizer, true);
    auto matcher = tandem::text::StopMatcher::create({"<stop>", "\n\nUser:"}, {}, true);
    size_t sent = 0;
    for (const int32_t& id : ids) sent += matcher->append(decoder.append({&id, 1})).size();
    if (sent + decoder.finish().size() + matcher->finish().size() != text.size()) state.SkipWithError("text is lost");
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations() * ids.size()));
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  const std::string root = TANDEM_SOURCE_DIR;
  auto loaded = Tokenizer::load(argc > 1 ? argv[1] : root + "/models/tiny/tokenizer.json");
  if (!loaded) return std::fprintf(stderr, "%s\n", loaded.error().message.c_str()), 1;
  std::shared_ptr<const Tokenizer> tokenizer = *loaded;
  const std::string prose = repeated(root + "/tests/data/tiny/perplexity.txt", 1 << 20);
  const std::string word = without_spaces(prose).substr(0, 1 << 19);
  const std::string code = repeated(root + "/src/text/tokenizer_load.cc", 1 << 20);
  auto add = [&](const char* name, auto function, const std::string& text) {
    benchmark::RegisterBenchmark(name, function, std::cref(*tokenizer), std::cref(text))->Unit(benchmark::kMillisecond);
  };
  const std::string chat = prose.substr(0, 400);
  add("text/encode/prose/bytes=1M", encode, prose);
  add("text/encode/code/bytes=1M", encode, code);
  add("text/encode/one_word/bytes=512K", encode, word);
  add("text/encode/prose/bytes=400", encode, chat);
  add("text/decode/prose/bytes=1M", decode, prose);
  add("text/stream/prose/bytes=1M", stream, prose);
  benchmark::RunSpecifiedBenchmarks();
}
