// Spreading row-wise work over the pool.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/context.h"

namespace tandem::kernels::cpu {

// Calls body(row) for each row, on several threads where rows * width elements are worth it.
template <class F>
void for_rows(const Context& ctx, int64_t rows, int64_t width, const F& body) {
  constexpr int64_t kBlock = 8192;  // elements: a few microseconds of work
  if (rows * width < 2 * kBlock) {
    for (int64_t r = 0; r < rows; ++r) body(r);
    return;
  }
  const int64_t size = std::max<int64_t>(1, kBlock / width);
  ctx.pool->parallel_for((rows + size - 1) / size, [&](int64_t i, int) {
    for (int64_t r = i * size; r < std::min(rows, (i + 1) * size); ++r) body(r);
  });
}

}  // namespace tandem::kernels::cpu
