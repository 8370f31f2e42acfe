// y = x W^T for the projections: weights stay in the form of the checkpoint (FP8 blocks, bf16 or f32), repacked once at
// load for the backend. Reduction order over K is fixed per output element, so a row's result does not depend on
// the number of rows in the call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "device/buffer.h"
#include "kernels/context.h"

namespace tandem::kernels {

// A weight as the checkpoint stores it: rows are outputs (N), columns inputs (K).
struct RawWeight {
  const void* data = nullptr;                 // [rows, cols], dtype, row-major
  device::DType dtype = device::DType::kF32;  // kF8E4M3, kBF16 or kF32
  int64_t rows = 0, cols = 0;
  int64_t row_stride = 0;   // elements from row to row; cols when contiguous
  bool transposed = false;  // true: use W^T, so that outputs are `cols` and inputs `rows` (absorbed k)
  // FP8 only: weight = value * scale_inv[(row_offset + row) / 128][(col_offset + col) / 128].
  const float* scale_inv = nullptr;
  int64_t scale_stride = 0;                // scales per block row
  int64_t row_offset = 0, col_offset = 0;  // where this view begins inside the scaled matrix
};

// A weight (or several of equal K stacked along N, such as gate and up) in the backend's own form.
// Immutable after packing. Owns its bytes until place() moves them into memory of the caller's. Any thread may read.
class PackedWeight {
 public:
  PackedWeight();
  PackedWeight(PackedWeight&&) noexcept;
  PackedWeight& operator=(PackedWeight&&) noexcept;
  ~PackedWeight();

  int64_t rows() const { return rows_; }  // outputs, N
  int64_t cols() const { return cols_; }  // inputs, K
  size_t bytes() const;                   // values and scales, each rounded up to a cache line

  // Moves the bytes to `memory` (cache-line aligned, bytes() long, borrowed from now on). The bytes do not depend on
  // where they lie: copied elsewhere they are the same weight.
  void place(std::byte* memory);
  // The same without moving: bytes() bytes for a like() weight.
  void copy_to(std::byte* memory) const;
  // The weight whose bytes lie, or will lie, at `memory`: form and size are this one's. Borrows.
  PackedWeight like(std::byte* memory) const;
  // Whether bytes of one may stand in for those of the other.
  bool has_form_of(const PackedWeight& other) const;

  struct Impl;  // defined in kernels/gemm_impl.h, private to this room
  const Impl* impl() const { return impl_.get(); }

 private:
  friend PackedWeight pack_any(Backend, Isa, const std::vector<RawWeight>&, std::optional<device::DType>);
  int64_t rows_ = 0, cols_ = 0;
  std::unique_ptr<Impl> impl_;
};

// Copies and rearranges; FP8 stays one byte per value. `stacked` holds at least one weight, all with the same K.
PackedWeight pack(Backend backend, Isa isa, const std::vector<RawWeight>& stacked);

// y[m, n] = sum_k x[m, k] * w[n, k], accumulated in f32.
//   x  [M, K]  ctx.act_dtype()      y  [M, N]  f32 or ctx.act_dtype()
void linear(const Context& ctx, device::TensorView x, const PackedWeight& w, device::TensorView y);

// As linear, then y += result, y f32 (the residual stream).
void linear_add(const Context& ctx, device::TensorView x, const PackedWeight& w, device::TensorView y);

// Bytes of workspace that linear / linear_add take for M rows.
size_t linear_workspace_bytes(const Context& ctx, int64_t max_rows, int64_t n, int64_t k);

}  // namespace tandem::kernels
