// Descriptions of matrices for the copy engine. Private to this folder.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "device/dtype.h"

namespace tandem::kernels::cuda {

// Matrices of equal shape at equal distances, as one tensor [count][rows][cols]; boxes are `box_rows` rows of 128
// bytes, swizzled over 128 bytes. What lies outside reads as zero.
struct MatrixMap {
  const void* data = nullptr;  // 16-byte aligned
  device::DType dtype = device::DType::kBF16;
  int64_t cols = 0, rows = 0, count = 1;
  int64_t row_bytes = 0, matrix_bytes = 0;  // distances, multiples of 16
  int32_t box_rows = 0;                     // at most 256
};
CUtensorMap make_tensor_map(const MatrixMap& matrix);

}  // namespace tandem::kernels::cuda
