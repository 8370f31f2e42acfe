// Rows of one rank's batch sorted by slot, for tests and benches of the grouped MLP (a server's rows come sorted out of
// the expert exchange). A plain counting sort.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/moe.h"

namespace tandem::kernels::test {

struct SortedRows {
  // slots [tokens * top_k], each in [0, num_slots).
  SortedRows(const std::vector<int32_t>& slots, int32_t top_k, int32_t num_slots) : begin(size_t(num_slots) + 1) {
    for (const int32_t slot : slots) ++begin[size_t(slot) + 1];
    for (size_t s = 1; s < begin.size(); ++s) begin[s] += begin[s - 1];
    std::vector<int32_t> next(begin.begin(), begin.end() - 1);
    tokens.resize(slots.size());
    for (size_t i = 0; i < slots.size(); ++i) {
      row_of.push_back(next[size_t(slots[i])]++);
      tokens[size_t(row_of[i])] = int32_t(i) / top_k;
    }
  }
  SlotSort sort() const { return {begin, tokens}; }

  std::vector<int32_t> begin, tokens;
  std::vector<int32_t> row_of;  // sorted row of each (token, choice)
};

}  // namespace tandem::kernels::test
