// Any bytes as a generation request: what the router accepts and sends on is read by another parser as an object with
// the router's bootstrap fields, once each, if that parser accepts it at all.
#include <cstdint>
#include <string>
#include <vector>

#include "api/bootstrap.h"
#include "base/check.h"
#include "base/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem;
  if (size == 0) return 0;
  const auto kind = static_cast<api::BodyKind>(data[0] % 3);
  std::string body(reinterpret_cast<const char*>(data) + 1, size - 1);
  auto routed = api::prepare_routed_body(kind, body);
  if (!routed) return 0;
  const std::vector<uint64_t> rooms(routed->batch_size.value_or(1), 7);
  const std::string sent = body + api::bootstrap_tail(*routed, "host", 8998, rooms);
  auto document = json::Document::parse(sent, "sent");
  if (!document) return 0;  // nested nonsense, which the servers refuse
  simdjson::dom::object object;
  CHECK(!document->root().get_object().get(object));
  int fields = 0;
  for (auto field : object) {
    if (!field.key.starts_with("bootstrap_")) continue;
    const bool ours = field.key == "bootstrap_host" || field.key == "bootstrap_port" || field.key == "bootstrap_room";
    fields += ours;
    if (ours) CHECK(field.value.is_array() == routed->batch_size.has_value());
  }
  CHECK(fields == 3);
  return 0;
}
