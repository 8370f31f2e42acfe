// Any bytes as the frames of a greeting, one after the other, at either side: nobody who lacks the secret comes in.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "transport/greeting/greeting.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem::transport;
  static const Credentials own{"a secret of the deployment", 3};
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (const auto frame = decode_greeting(bytes)) CHECK(encode_greeting(*frame) == bytes);
  const Side side = data[0] % 2 == 0 ? Side::kListener : Side::kCaller;
  Greeting greeting(side, own, Nonce{7});
  const size_t first = std::min<size_t>(bytes.size(), data[0] / 2);
  for (const std::string_view frame : {bytes.substr(0, first), bytes.substr(first)}) {
    static_cast<void>(greeting.take(frame));
    CHECK(greeting.state() != Greeting::State::kOpen);
  }
  return 0;
}
