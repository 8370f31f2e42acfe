// The GPU's plain product: any types, any sizes, f32 sums; what has no faster kernel uses it. Private to this folder.
#pragma once

#include "kernels/backends.h"

namespace tandem::kernels::cuda {

inline constexpr int kMaxSlots = 288;  // of one rank in one call: their addresses are a parameter of the kernel

// y[z][m, n] (+)= sum_k x[z][row(m), k] * w[z][n, k]. Several products z of equal shape run at once: heads side by side
// in the same rows (strides), or the slots of an expert layer (slot_begin: rows [slot_begin[z], slot_begin[z + 1])).
struct PlainGemm {
  const void* x = nullptr;
  int64_t x_row_stride = 0, x_batch_stride = 0;  // elements
  const int32_t* x_row_of = nullptr;             // gathers: row m of the product is row x_row_of[m] of x
  bool x_is_bf16 = false;
  const std::byte* w = nullptr;
  int64_t w_batch_stride = 0;  // bytes
  int64_t w_row_stride = 0;    // elements
  const float* scales = nullptr;
  int32_t scale_cols = 0;
  device::DType w_type = device::DType::kF32;
  void* y = nullptr;
  int64_t y_row_stride = 0, y_batch_stride = 0;  // elements
  bool y_is_bf16 = false, add = false;
  const int32_t* slot_begin = nullptr;
  int64_t max_rows = 0;  // of all z together where slot_begin is given, else of each
  int64_t n = 0, k = 0, batch = 1;
};

// The weights of each slot, one form for all.
struct SlotWeights {
  const std::byte* values[kMaxSlots];
  int64_t scale_offset;  // bytes from values to scales
  // Not null: those of slot z are place_of_slot[z] places behind values[0]. In the GPU's memory.
  const int32_t* place_of_slot;
  int64_t place_bytes;
};

void run_plain_gemm(const Context& ctx, const PlainGemm& gemm);
void run_plain_gemm(const Context& ctx, const PlainGemm& gemm, const SlotWeights& slots);
// What a packed weight says of w, scales and types.
void set_weight(PlainGemm& gemm, const PackedWeight::Impl& weight);

}  // namespace tandem::kernels::cuda
