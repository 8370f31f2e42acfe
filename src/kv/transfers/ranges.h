// Bounds of reads, the same for every backend.
#pragma once

#include <cstdint>
#include <span>

#include "base/result.h"
#include "kv/transfer.h"

namespace tandem::kv {

// kInvalidInput, naming the read and the first range outside either region; empty ranges are refused too.
Status check_ranges(uint64_t read_id, std::span<const CopyRange> ranges, int64_t remote_bytes, int64_t local_bytes);

}  // namespace tandem::kv
