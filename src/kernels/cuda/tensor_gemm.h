// The product on tensor cores: FP8 with 128-blocks of scales, or bf16; dense, or grouped by slot. Private to this
// folder.
#pragma once

#include "kernels/backends.h"

namespace tandem::kernels::cuda {

inline constexpr int kMaxGroups = 288;  // slots of one rank in one call, or heads

// y[r, n] (+)= sum_k x[r, k] w[group(r)][n, k]. Weights of all groups are equal in form and lie in places at equal
// distances.
struct TensorGemm {
  const char* name = "linear";                   // in the log of launches
  device::DType dtype = device::DType::kF8E4M3;  // of x and w: kF8E4M3 or kBF16
  const void* x = nullptr;                       // [rows, k]; several groups without slot_begin: [rows, groups, k]
  const float* x_scales = nullptr;               // FP8: [ceil(k/128)][x_scale_stride]
  int64_t x_scale_stride = 0;
  int64_t rows = 0, n = 0, k = 0;  // rows: with slot_begin of all groups together, at most
  const std::byte* w = nullptr;    // place 0
  int64_t place_bytes = 0;         // from place to place; not read with one group
  int64_t scale_offset = 0;        // FP8: bytes from a place's values to its scales [ceil(n/128)][ceil(k/128)]
  int32_t num_places = 1, num_groups = 1;
  const int32_t* place_of_group = nullptr;      // host; null: the same
  const int32_t* gpu_place_of_group = nullptr;  // in its place where not null; in the GPU's memory
  // Rows of group g are [slot_begin[g], slot_begin[g + 1]), in the GPU's memory. Null: every group has all rows (heads:
  // x and y hold the groups side by side in a row).
  const int32_t* slot_begin = nullptr;
  int64_t x_row_stride = 0, y_row_stride = 0;  // elements
  int64_t x_group_stride = 0, y_group_stride = 0;
  void* y = nullptr;
  bool y_is_bf16 = false, add = false;
};
// Whether sizes and strides suit the copy engine.
bool can_run_tensor_gemm(device::DType dtype, int64_t n, int64_t k);
void run_tensor_gemm(const Context& ctx, const TensorGemm& gemm);

// x in groups of 128 inputs: values [rows, k] FP8, scales [k/128][row stride] = largest magnitude / 448.
// row_of: gathers, null: as it lies.
struct Quantised {
  uint8_t* values = nullptr;
  float* scales = nullptr;
  int64_t scale_stride = 0;

  static size_t bytes(int64_t rows, int64_t k);
  static Quantised take(device::Workspace& workspace, int64_t rows, int64_t k);
};
void quantise(const Context& ctx, device::TensorView x, const int32_t* row_of, int64_t rows, const Quantised& out);
// The same of rows that are quantised already: x [T, fp8_row_bytes(width)] (fp8_rows.h), width a multiple of 16.
void gather_quantised(const Context& ctx, device::TensorView x, const int32_t* row_of, int64_t width, int64_t rows,
                      const Quantised& out);
// The same of silu(gate) * up:  gate_up [rows, 2 width] f32 or bf16.
void swiglu_quantise(const Context& ctx, device::TensorView gate_up, const Quantised& out);

}  // namespace tandem::kernels::cuda
