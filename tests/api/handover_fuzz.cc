// Messages of the KV handover: whatever comes is a message or an error, and what is a message is written as it was
// read.
#include <cstdint>
#include <string_view>

#include "api/handover.h"
#include "base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const tandem::Result<tandem::api::HandoverEnvelope> got = tandem::api::decode_handover(bytes);
  if (!got) return 0;
  const std::string again = tandem::api::encode_handover(got->epoch, got->message);
  CHECK(again.size() == size);
  // A digest that is absent is written as 0, whatever came in its place.
  const auto* confirmed = std::get_if<tandem::api::HandoverConfirmed>(&got->message);
  if (confirmed == nullptr || confirmed->digest) CHECK(again == bytes);
  return 0;
}
