// The trace reader: whatever comes is a trace or an error, and of a trace the table can be made.
#include <cstdint>
#include <string_view>

#include "profile/trace_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const tandem::Result<tandem::profile::Trace> trace = tandem::profile::parse_trace(bytes, "input");
  if (trace) static_cast<void>(tandem::profile::operator_table(*trace));
  return 0;
}
