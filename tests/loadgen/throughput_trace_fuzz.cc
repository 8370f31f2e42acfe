// Input: a Chrome trace, uncompressed. However it is cut into pieces, the same is read.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "loadgen/throughput/trace_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem::loadgen;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto read = [](std::string_view first, std::string_view second) -> tandem::Result<TraceSteps> {
    TraceReader reader("7-TP-0.trace.json");
    RETURN_IF_ERROR(reader.feed(first));
    RETURN_IF_ERROR(reader.feed(second));
    return reader.finish();
  };
  const auto one = read(text, {}), two = read(text.substr(0, size / 2), text.substr(size / 2));
  CHECK(one.has_value() == two.has_value());
  if (!one) {
    CHECK(one.error().message == two.error().message);
    CHECK(one.error().message.find('\n') == std::string::npos);
    return 0;
  }
  CHECK(one->events == two->events);
  PhaseMeasure measure;
  add_traces({*one}, true, measure);
  judge(measure, 1, 0.1);
  return 0;
}
