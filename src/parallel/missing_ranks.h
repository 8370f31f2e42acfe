// The ranks that a wait is for. Value.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace tandem::parallel {

struct MissingRanks {
  int32_t count = 0;
  std::array<int32_t, 6> first{};  // the first of them; beyond `count` zero

  void add(int32_t rank) {
    if (count < int32_t(first.size())) first[size_t(count)] = rank;
    ++count;
  }
  bool operator==(const MissingRanks&) const = default;
};

}  // namespace tandem::parallel
