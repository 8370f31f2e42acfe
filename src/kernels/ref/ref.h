// Parts of the oracle that others share.
#pragma once

#include "kernels/backends.h"

namespace tandem::kernels::ref {

// Element i of a tensor of f32 or bf16.
float load(const device::TensorView& x, int64_t i);
void store(const device::TensorView& y, int64_t i, float value);

// x as contiguous f32: its own memory, or a converted copy in the workspace.
const float* as_f32(const Context& ctx, const device::TensorView& x);

// Best experts of one row of scores: routing is a choice, not arithmetic, so every backend uses this one.
//   scores [E] after sigmoid or softmax; bias [E] or null; scratch [E + num_groups].
void choose_experts(const GateConfig& config, const float* scores, const float* bias, float* scratch, int32_t* ids,
                    float* weights);

// The two passes over a row of logits that a backend may do faster.
struct RowMath {
  // Index of the largest value, the lowest of equals; -1 when there is a NaN.
  int64_t (*argmax)(const float* x, int64_t count);
  // out[i] = exp(x[i] - top).
  void (*exp_below)(const float* x, int64_t count, float top, float* out);
};

// One row, through every step in the order of the door header. scratch: sample_scratch_bytes(vocab).
void sample_row(const RowMath& math, float* logits, int32_t vocab, const SampleParams& params, SampleResult& result,
                void* scratch);
size_t sample_scratch_bytes(int32_t vocab);

}  // namespace tandem::kernels::ref
