// Input: model.safetensors.index.json. Whatever parses names files of the same folder.
#include <cstdint>

#include "base/check.h"
#include "model/checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto parsed = tandem::model::parse_safetensors_index({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (!parsed) return 0;
  CHECK(!parsed->empty());
  for (const tandem::model::IndexEntry& entry : *parsed) {
    CHECK(!entry.file.empty());
    CHECK(entry.file.find('/') == std::string::npos);
  }
  return 0;
}
