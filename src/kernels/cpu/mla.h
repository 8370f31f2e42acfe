// Shared by the attention drivers of the cpu backend.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

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

// Address of a position's row.
inline const char* cache_row(const MlaShape& shape, const PagedCache& cache, const SequenceSpan& s, int64_t position) {
  const int64_t block = s.block_table[position / cache.block_tokens];
  const int64_t row = block * cache.block_tokens + position % cache.block_tokens;
  return static_cast<const char*>(cache.base) + row * shape.row_width() * int64_t(size_of(cache.dtype));
}

// Elements [first, first + count) of a row as f32.
inline void read_row(const Leaf& leaf, const PagedCache& cache, const char* row, int64_t first, int64_t count,
                     float* out) {
  if (cache.dtype == device::DType::kF32) {
    std::memcpy(out, row + first * int64_t(sizeof(float)), size_t(count) * sizeof(float));
  } else if (cache.dtype == device::DType::kF8E4M3) {
    leaf.widen_f8_row(reinterpret_cast<const uint8_t*>(row) + first, count, out);
  } else {
    leaf.widen_row(reinterpret_cast<const uint16_t*>(row) + first, count, out);
  }
}

size_t prefill_workspace_bytes(const Context& ctx, const MlaShape& shape, int64_t max_rows, int64_t max_sequences);
size_t decode_workspace_bytes(const Context& ctx, const MlaShape& shape, int64_t max_sequences, int64_t max_context);

}  // namespace tandem::kernels::cpu
