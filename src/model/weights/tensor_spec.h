// What an architecture wants from a checkpoint: one row per tensor. The same list checks a checkpoint, invents one,
// sizes the memory and prints `tandem model show`.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tandem::model {

// What the forward pass does with a tensor, hence which dtypes it may have.
enum class TensorRole : uint8_t {
  kProjection,  // GEMM weight [outputs, inputs]: FP8 blocks (with NAME_scale_inv), bf16 or f32
  kTable,       // embedding and head: bf16 or f32
  kRouter,      // gate matrix: bf16 or f32, used as f32
  kGain,        // norm weight: bf16 or f32, used as f32
  kBias,        // correction bias of the gate: bf16 or f32, used as f32
};

// Rows of `tandem model show`.
enum class TensorGroup : uint8_t {
  kEmbedding,
  kAttention,
  kDenseMlp,
  kSharedExperts,
  kRoutedExperts,
  kRouter,
  kNorms,
  kHead
};
inline constexpr int kNumTensorGroups = 8;
std::string_view to_string(TensorGroup group);

struct TensorSpec {
  std::string name;
  int64_t rows = 0, cols = 0;  // cols 0: a vector of `rows`
  TensorRole role = TensorRole::kProjection;
  TensorGroup group = TensorGroup::kAttention;

  int64_t num_elements() const { return cols == 0 ? rows : rows * cols; }
  bool is_fp8(bool fp8_blocks) const { return fp8_blocks && role == TensorRole::kProjection; }
  // Of an FP8 weight's scales.
  int64_t scale_rows() const { return (rows + 127) / 128; }
  int64_t scale_cols() const { return (cols + 127) / 128; }
};

}  // namespace tandem::model
