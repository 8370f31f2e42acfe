#include "kernels/cuda/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include "base/check.h"

namespace tandem::kernels::cuda {
namespace {

// The driver's function, asked for at run time so that nothing links against a driver.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult status{};
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &status);
    CHECK(error == cudaSuccess && status == cudaDriverEntryPointSuccess);
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return found;
}

}  // namespace

CUtensorMap make_tensor_map(const MatrixMap& matrix) {
  CUtensorMap map;
  const bool is_bf16 = matrix.dtype == device::DType::kBF16;
  CHECK(is_bf16 || matrix.dtype == device::DType::kF8E4M3);
  const cuuint64_t sizes[3] = {cuuint64_t(matrix.cols), cuuint64_t(matrix.rows), cuuint64_t(matrix.count)};
  const cuuint64_t strides[2] = {cuuint64_t(matrix.row_bytes),
                                 cuuint64_t(matrix.count > 1 ? matrix.matrix_bytes : matrix.row_bytes * matrix.rows)};
  const cuuint32_t box[3] = {is_bf16 ? 64u : 128u, cuuint32_t(matrix.box_rows), 1}, steps[3] = {1, 1, 1};
  const CUresult result =
      encoder()(&map, is_bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8, 3,
                const_cast<void*>(matrix.data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(result == CUDA_SUCCESS);
  return map;
}

}  // namespace tandem::kernels::cuda
