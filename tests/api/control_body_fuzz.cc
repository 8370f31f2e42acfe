// Any bytes as the body of an endpoint that changes the server: a value within its bounds, or an error.
#include <cstdint>
#include <string_view>

#include "api/control.h"
#include "api/profile.h"
#include "base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem::api;
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  if (const auto call = parse_slow_down(body)) CHECK(call->sleep_ms <= 86'400'000);
  if (const auto call = parse_hold(body)) {
    CHECK(call->running_requests >= 0);
    CHECK(call->timeout_s >= 0);
  }
  static_cast<void>(parse_rebalance(body));
  static_cast<void>(parse_abort(body));
  if (const auto call = parse_start_profile(body)) {
    CHECK(call->prefix.find('/') == std::string::npos);
    CHECK(call->prefix.find('\0') == std::string::npos);
    CHECK(call->output_dir.find('\0') == std::string::npos);
    CHECK(!call->num_steps || *call->num_steps > 0);
  }
  return 0;
}
