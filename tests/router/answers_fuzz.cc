// Any bytes as what servers answer a router that puts answers together: of valid answers a valid one is made (what is
// not valid passes through where nothing is put in). Up to a zero byte: of prefill, then of decode.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "base/json.h"
#include "router/merge_logprobs.h"
#include "router/metrics_merge.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const size_t zero = std::min(bytes.find('\0'), size);
  const std::string_view prefill = bytes.substr(0, zero), decode = bytes.substr(std::min(zero + 1, size));
  static_cast<void>(router::merge_metrics({{"http://a:1", prefill}, {"http://b:2", decode}}));
  const bool is_valid = json::Document::parse(prefill, "prefill") && json::Document::parse(decode, "decode");
  const auto merged = router::merge_input_logprobs(prefill, decode);
  if (merged && is_valid) CHECK(json::Document::parse(*merged, "merged").has_value());
  router::EventLogprobMerger events;
  events.add_prefill_event(prefill);
  const std::string event = events.merge(decode);
  if (is_valid) CHECK(json::Document::parse(event, "merged").has_value());
  return 0;
}
