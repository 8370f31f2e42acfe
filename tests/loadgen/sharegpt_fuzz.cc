// Any bytes as a ShareGPT file: conversations, at least one, or an error of one line.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "loadgen/sharegpt.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto parsed = tandem::loadgen::parse_sharegpt({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (parsed) {
    CHECK(!parsed->empty());
  } else {
    CHECK(!parsed.error().message.empty());
  }
  return 0;
}
