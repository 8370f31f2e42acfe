#include "kv/transfers/ranges.h"

#include <fmt/format.h>

namespace tandem::kv {

Status check_ranges(uint64_t read_id, std::span<const CopyRange> ranges, int64_t remote_bytes, int64_t local_bytes) {
  // Compared by subtraction: offset + bytes could overflow.
  const auto inside = [](int64_t offset, int64_t bytes, int64_t size) {
    return offset >= 0 && bytes > 0 && bytes <= size && offset <= size - bytes;
  };
  for (size_t i = 0; i < ranges.size(); ++i) {
    const CopyRange& range = ranges[i];
    if (!inside(range.remote_offset, range.bytes, remote_bytes)) {
      return invalid_input(fmt::format("read {} range {}: [{}, +{}) is outside the peer's region of {} bytes", read_id,
                                       i, range.remote_offset, range.bytes, remote_bytes));
    }
    if (!inside(range.local_offset, range.bytes, local_bytes)) {
      return invalid_input(fmt::format("read {} range {}: [{}, +{}) is outside the local region of {} bytes", read_id,
                                       i, range.local_offset, range.bytes, local_bytes));
    }
  }
  return Ok{};
}

}  // namespace tandem::kv
