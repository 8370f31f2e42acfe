#pragma once

#include <cstdint>
#include <set>

namespace tandem::engine {

struct SinkHandover {
  std::set<uint64_t> reads;
};

}  // namespace tandem::engine
