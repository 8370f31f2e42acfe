// Templates from anywhere: an error, or text, in bounded time.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view source(reinterpret_cast<const char*>(data), size);
  auto parsed = tandem::text::ChatTemplate::parse(source, "<s>", "</s>", "fuzz");
  if (!parsed) {
    CHECK(!parsed.error().message.empty());
    return 0;
  }
  const std::vector<tandem::text::ChatMessage> messages = {{"system", "a"}, {"user", "b </think> c"}, {"assistant", ""}};
  for (bool open : {false, true}) {
    auto text = parsed->render(messages, true, open);
    if (!text) CHECK(!text.error().message.empty());
  }
  return 0;
}
