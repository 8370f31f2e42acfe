// The weights of one DeepSeek-family model in the backend's form. Immutable after packing.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "device/buffer.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/moe.h"
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
  kernels::PackedWeight q_up;  // q_b_proj from the latent, or q_proj from the hidden state
  kernels::KvUpWeights kv_up;
  kernels::PackedWeight output;
};

struct MlpWeights {
  Values norm;  // post_attention_layernorm
  // The dense MLP of a dense layer, the shared experts of an expert layer.
  kernels::ExpertWeights always;
  int32_t always_width = 0;  // 0: none
  Values router, bias;       // expert layers; bias only with noaux_tc
  std::vector<kernels::ExpertWeights> experts;
  std::vector<const kernels::ExpertWeights*> slots;  // slot -> weights; here every logical expert is its own slot
};

struct DeepseekWeights {
  device::Buffer embedding;
  device::DType embedding_dtype = device::DType::kBF16;
  std::vector<AttentionWeights> attention;
  std::vector<MlpWeights> mlp;
  Values final_norm;
  kernels::PackedWeight head;
};

// Packs on the pool's threads, a layer at a time; progress is called on the calling thread.
DeepseekWeights pack_deepseek(const ModelConfig& config, const WeightSource& source, const LoadOptions& options,
                              device::ThreadPool& pool);

// What pack_deepseek will own, by the forms that the kernels pack into.
int64_t deepseek_weight_bytes(const ModelConfig& config, kernels::Backend backend);

}  // namespace tandem::model
