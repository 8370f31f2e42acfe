// Mixture of experts: gate, grouped MLP over rows sorted by slot, combine. Split so that an exchange between ranks fits
// between gate and grouped MLP (dispatch) and between grouped MLP and combine.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/context.h"
#include "kernels/gemm.h"

namespace tandem::kernels {

enum class GateScoring : uint8_t { kSigmoid, kSoftmax };
enum class GateMethod : uint8_t {
  kGreedy,              // top_k over all scores
  kGroupLimitedGreedy,  // V2: groups ranked by their best score
  kNoAuxTc,  // V3: groups ranked by the sum of their best two (score + bias); weights from scores without bias
};

struct GateConfig {
  int32_t num_experts = 0, top_k = 0;
  int32_t num_groups = 1, top_k_groups = 1;
  GateScoring scoring = GateScoring::kSigmoid;
  GateMethod method = GateMethod::kNoAuxTc;
  bool normalize = true;        // norm_topk_prob: weights / (sum + 1e-20)
  float scaling_factor = 1.0f;  // routed_scaling_factor. As in the Hugging Face V2 code, softmax gates with
                                // norm_topk_prob and top_k > 1 are normalised and then scaled too.
};

// x [T, H] f32 (unrounded norm), weight [E, H] f32, bias [E] f32 or empty.
// ids [T, top_k] i32 logical experts, best first; weights [T, top_k] f32. Ties: lower expert id first.
void gate(const Context& ctx, const GateConfig& config, device::TensorView x, device::TensorView weight,
          device::TensorView bias, device::TensorView ids, device::TensorView weights);

// Rows sorted by slot, as the expert exchange brings them. Borrows.
struct SlotSort {
  std::span<const int32_t> slot_begin;  // [num_slots + 1] into the sorted rows
  std::span<const int32_t> row_token;   // [R] row of x of each sorted row; within a slot ascending
};

// One expert's two projections in the backend's form.
struct ExpertWeights {
  PackedWeight gate_up;  // [2I, H]
  PackedWeight down;     // [H, I]
};

// y[r] = down(swiglu(gate_up(x[row_token[r]]))) for each sorted row r with its slot's weights.
//   x [T, H] act_dtype, y [R, H] f32. experts[slot], null where slot_begin says there are no rows.
void grouped_mlp(const Context& ctx, device::TensorView x, const SlotSort& sort,
                 std::span<const ExpertWeights* const> experts, int32_t intermediate, device::TensorView y);

// out[t] += sum over k in order of weights[t, k] * rows[t * top_k + k].   rows: [H] f32 each; out [T, H] f32.
void combine(const Context& ctx, std::span<const float* const> rows, device::TensorView weights,
             device::TensorView out);

size_t moe_workspace_bytes(const Context& ctx, int64_t max_rows, int32_t top_k, int32_t num_slots, int64_t hidden,
                           int64_t intermediate);

}  // namespace tandem::kernels
