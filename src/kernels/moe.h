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
//   x [T, H] act_dtype, or where takes_fp8_rows() rows in FP8 (fp8_rows.h), kF8E4M3 [T, fp8_row_bytes(H)]; y [R, H]
//   f32. experts[slot], null where slot_begin says there are no rows.
void grouped_mlp(const Context& ctx, device::TensorView x, const SlotSort& sort,
                 std::span<const ExpertWeights* const> experts, int32_t intermediate, device::TensorView y);

// Whether grouped_mlp takes rows in FP8 where experts have FP8 blocks. It then gives what it gives for the rows that
// they were made of, as it would have quantised those in the same way.
bool takes_fp8_rows(Backend backend, int64_t hidden, int64_t intermediate);

// out[t] += sum over k in order of weights[t, k] * rows[t * top_k + k].   rows: [H] f32 each; out [T, H] f32.
void combine(const Context& ctx, std::span<const float* const> rows, device::TensorView weights,
             device::TensorView out);

// GPU backends only; on the CPU the model and the exchange do the same on the host.

// Experts in equal places side by side, and which of them each slot uses. The table is read when the kernels run, so
// that a recorded step follows a change of it.
struct GpuPlaces {
  const ExpertWeights* first = nullptr;  // place 0; the others lie behind it, each as long as the two projections
  int32_t num_places = 0, num_slots = 0;
  const int32_t* of_slot = nullptr;  // [num_slots], in the GPU's memory
};
// grouped_mlp() with the weights of places[of_slot[slot]].
void grouped_mlp(const Context& ctx, device::TensorView x, const SlotSort& sort, const GpuPlaces& places,
                 int32_t intermediate, device::TensorView y);

// What differs from step to step; it lies in the GPU's memory, so that a recorded step reads it anew.
struct StepValues {
  uint64_t step = 0;
  int64_t num_tokens = 0;  // of the batch; rows beyond only fill it up, and take no slot
};

// Where tokens of a layer go: expert e to the slots slot[begin[e]] up to slot[begin[e + 1] - 1], by cumulative share
// (experts::LayerDispatch). The step, a layer's number and first_token give each (token, choice) its draw.
struct SlotChoice {
  const int32_t* begin = nullptr;  // [num_experts + 1]
  const int32_t* slot = nullptr;
  const int32_t* upto = nullptr;
  int32_t num_experts = 0;
  const StepValues* values = nullptr;
  uint64_t layer = 0, num_layers = 0;  // seed of the draws: step * num_layers + layer
  int64_t first_token = 0;
  bool fakes_routing = false;  // any top_k different experts, evenly
};
// ids [T, top_k]: experts become slots in place, -1 where the row only fills the batch up. counts [num_experts], added
// to; null: not wanted.
void choose_slots(const Context& ctx, const SlotChoice& choice, device::TensorView ids, int32_t* counts);

// The (token, choice) pairs sorted by slot, within a slot ascending.
struct GpuSlotSort {
  int32_t* slot_begin = nullptr;   // out [num_slots + 1]
  int32_t* row_token = nullptr;    // out [T * top_k]
  const float* results = nullptr;  // rows of `width`, sorted
  int64_t width = 0;
  const float** result_of = nullptr;  // out [T * top_k]: the row in results of each pair
};
// slots [T, top_k], each below num_slots; the result of a pair with slot -1 is the first row, whatever that holds. What
// row_token has beyond slot_begin's end is 0.
void sort_by_slot(const Context& ctx, device::TensorView slots, int32_t num_slots, const GpuSlotSort& sort);

size_t moe_workspace_bytes(const Context& ctx, int64_t max_rows, int32_t top_k, int32_t num_slots, int64_t hidden,
                           int64_t intermediate);

}  // namespace tandem::kernels
