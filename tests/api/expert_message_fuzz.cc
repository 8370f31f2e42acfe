// Messages about experts between nodes: whatever comes is a message or an error, and what is a message is written as it
// was read.
#include <cstdint>
#include <string_view>

#include "api/node_experts.h"
#include "base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const tandem::Result<tandem::api::NodeExpertMessage> message = tandem::api::decode_expert_message(bytes);
  if (message) CHECK(tandem::api::encode_expert_message(*message) == bytes);
  return 0;
}
