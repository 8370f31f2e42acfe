// Any bytes in any two cuts: the parser gives the same events, and never one beyond its limit.
#include <cstdint>
#include <string>
#include <vector>

#include "base/check.h"
#include "net/sse.h"

namespace {

struct Outcome {
  std::vector<std::string> events;
  bool fits = true;
  bool operator==(const Outcome&) const = default;
};

constexpr size_t kLimit = 64;

Outcome parse(std::string_view bytes, size_t cut) {
  Outcome outcome;
  tandem::net::SseParser parser(kLimit);
  auto take = [&](std::string_view data) {
    CHECK(data.size() <= kLimit);
    outcome.events.emplace_back(data);
  };
  outcome.fits = parser.feed(bytes.substr(0, cut), take) && parser.feed(bytes.substr(cut), take);
  return outcome;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const Outcome whole = parse(bytes, bytes.size());
  CHECK(whole == parse(bytes, std::min<size_t>(data[0], bytes.size())));
  return 0;
}
