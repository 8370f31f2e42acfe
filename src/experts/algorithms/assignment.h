#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tandem::experts {

// A column for each row, all different, with the largest sum of gain[row * size + column]. O(size^3). Deterministic.
// Source: the Hungarian method with potentials and shortest augmenting paths (Kuhn 1955, Munkres 1957).
std::vector<int32_t> best_assignment(std::span<const int64_t> gain, int32_t size);

}  // namespace tandem::experts
