// Frames of a link from a peer: decoding never fails but by value, and what was decoded encodes to the same bytes.
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "kv/transfers/link_wire.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto frame = tandem::kv::decode_link_frame(bytes);
  if (frame) CHECK(tandem::kv::encode_link_frame(*frame) == bytes);
  return 0;
}
