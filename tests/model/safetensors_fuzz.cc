// Input: a whole safetensors file. Whatever parses must lie inside the bytes.
#include <cstdint>

#include "base/check.h"
#include "model/checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto parsed = tandem::model::parse_safetensors_header({data, size}, size, "fuzz");
  if (!parsed) {
    CHECK(!parsed.error().message.empty());
    return 0;
  }
  uint64_t at = 0;
  for (const tandem::model::TensorEntry& entry : *parsed) {
    CHECK(entry.begin >= at);
    CHECK(entry.begin <= entry.end);
    CHECK(entry.end <= size);
    CHECK(uint64_t(entry.num_elements()) * uint64_t(entry.dtype->bytes) == entry.end - entry.begin);
    at = entry.end;
  }
  return 0;
}
