// Shared by the attention drivers of the cpu backend.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cpu/product.h"

namespace tandem::kernels::cpu {

inline constexpr float kLog2E = 1.44269504088896341f;

// Lays arrays out one after another, 64-byte aligned; with a null base it only measures. One list serves both.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    T* at = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (size_t(count) * sizeof(T) + 63) / 64 * 64;
    return at;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

inline const uint16_t* cache_row(const MlaShape& shape, const PagedCache& cache, const SequenceSpan& s,
                                 int64_t position) {
  const int64_t block = s.block_table[position / cache.block_tokens];
  return static_cast<const uint16_t*>(cache.base) +
         (block * cache.block_tokens + position % cache.block_tokens) * shape.row_width();
}

size_t prefill_workspace_bytes(const Context& ctx, const MlaShape& shape, int64_t max_rows, int64_t max_sequences);
size_t decode_workspace_bytes(const Context& ctx, const MlaShape& shape, int64_t max_sequences, int64_t max_context);

}  // namespace tandem::kernels::cpu
