// tokenizer.json from anywhere: an error, or a tokenizer that encodes and decodes without harm.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view json(reinterpret_cast<const char*>(data), size);
  auto tokenizer = tandem::text::Tokenizer::parse(json, "", "fuzz");
  if (!tokenizer) {
    CHECK(!tokenizer.error().message.empty());
    return 0;
  }
  // A word, digits, added tokens of the corpus, a broken character, and the input itself.
  std::string text = "abc ab 123  <x> word\xF0\x9F\x99\x82 \xFF\n";
  text += json.substr(0, 200);
  for (int32_t id : (*tokenizer)->encode(text, true)) {
    CHECK(id >= 0 && id < (*tokenizer)->vocab_size());
    CHECK(tandem::text::is_valid_utf8((*tokenizer)->decode({&id, 1}, false)));
  }
  return 0;
}
