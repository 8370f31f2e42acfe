// The weights of one DeepSeek-family model in the backend's form. What every rank of a process shares is immutable
// after packing; each rank's routed experts lie in its own ExpertSlots.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "device/buffer.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/moe.h"
#include "model/expert_slots.h"
#include "model/model.h"
#include "model/weights/weight_source.h"

namespace tandem::model {

// A small f32 tensor that owns its bytes: norm weights, router, bias.
struct Values {
  device::Buffer buffer;
  int64_t rows = 0, cols = 0;  // cols 0: a vector

  device::TensorView view() const {
    if (cols == 0) return {buffer.data(), device::DType::kF32, {rows}};
    return {buffer.data(), device::DType::kF32, {rows, cols}};
  }
};

struct AttentionWeights {
  Values input_norm, q_a_norm, kv_a_norm;
  kernels::PackedWeight
      down;  // with q_lora: q_a_proj over kv_a_proj, [q_lora + kv_lora + rope, hidden]; else kv_a only
  // By attention-TP rank: its share of the heads.
  std::vector<kernels::PackedWeight> q_up;  // q_b_proj from the latent, or q_proj from the hidden state
  std::vector<kernels::KvUpWeights> kv_up;
  kernels::PackedWeight output;
};

struct MlpWeights {
  Values norm;  // post_attention_layernorm
  // The dense MLP of a dense layer, the shared experts of an expert layer.
  kernels::ExpertWeights always;
  int32_t always_width = 0;  // 0: none
  Values router, bias;       // expert layers; bias only with noaux_tc
};

struct DeepseekWeights {
  explicit DeepseekWeights(device::Device device) : arena(device) {}

  device::Arena arena;  // the bytes of every packed weight
  device::Buffer embedding;
  device::DType embedding_dtype = device::DType::kBF16;
  std::vector<AttentionWeights> attention;
  std::vector<MlpWeights> mlp;
  Values final_norm;
  std::vector<kernels::PackedWeight> head;  // by attention-TP rank: its share of the vocabulary
};

// One rank's part of the experts to be packed.
struct RankExperts {
  Rank rank;
  int32_t gpu = 0;
  std::unique_ptr<ExpertSlots> slots;  // null: the model has no routed experts
};

// Packs on the pool's threads, a layer at a time; progress is called on the calling thread. `ranks` get their slots.
// Error: experts of several forms.
Result<std::unique_ptr<DeepseekWeights>> pack_deepseek(const ModelConfig& config, const WeightSource& source,
                                                       const LoadOptions& options, std::vector<RankExperts>& ranks);

// What pack_deepseek will own, by the forms that the kernels pack into: shared weights, and one expert.
struct DeepseekBytes {
  int64_t shared = 0, expert = 0;
};
DeepseekBytes deepseek_weight_bytes(const ModelConfig& config, kernels::Backend backend);

}  // namespace tandem::model
