// ModelConfig: config.json of the DeepSeek-V2/V3 family as a value. Pure parsing; no weights here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "kernels/attention.h"
#include "kernels/moe.h"

namespace tandem::model {

struct YarnConfig {
  float factor = 1, beta_fast = 32, beta_slow = 1, mscale = 1, mscale_all_dim = 0;
  int32_t original_max_position_embeddings = 4096;
};

struct ModelConfig {
  std::string architecture;  // "DeepseekV3ForCausalLM"
  std::string model_type;    // "deepseek_v3"
  int32_t vocab_size = 0, hidden_size = 0, num_layers = 0;
  int32_t first_k_dense_replace = 0, moe_layer_freq = 1;
  int32_t intermediate_size = 0, moe_intermediate_size = 0;
  int32_t num_routed_experts = 0, num_shared_experts = 0;  // 0 routed: all layers dense
  int32_t num_nextn_predict_layers = 0;                    // recognised, not loaded yet
  int32_t checkpoint_num_layers = 0;                       // num_hidden_layers before overrides cut it
  int32_t num_heads = 0;
  int32_t q_lora_rank = 0;  // 0: q_proj without a latent
  int32_t kv_lora_rank = 0, nope_dim = 0, rope_dim = 0, v_dim = 0;
  kernels::GateConfig gate;
  float rms_norm_eps = 1e-6f;
  float rope_theta = 10000.0f;
  std::optional<YarnConfig> yarn;
  int32_t max_position_embeddings = 0;
  int32_t bos_token_id = -1;
  std::vector<int32_t> eos_token_ids;
  bool tie_word_embeddings = false;
  bool fp8_blocks = false;  // quantization_config fp8 with 128x128 weight_scale_inv

  bool is_moe_layer(int32_t layer) const;
  kernels::MlaShape mla() const;  // softmax scale includes yarn's mscale
};

// 0.1 mscale ln(factor) + 1 above factor 1, as the YaRN paper (arXiv 2309.00071) and DeepSeek's code have it.
float yarn_mscale(float factor, float mscale);

// Hash over everything that changes what the forward pass computes. Part of a model's fingerprint.
uint64_t hash_config(const ModelConfig& config);

// json: text of config.json; overrides: --json-model-override-args, "" or an object whose keys replace top-level ones.
// name is for messages. Every field the forward pass depends on is checked (ranges, divisibility); an architecture or
// feature that is not understood is an error that names it.
Result<ModelConfig> parse_config(std::string_view json, std::string_view overrides, std::string_view name);

// generation_config.json defaults for chat sampling; absent file: all empty.
struct GenerationDefaults {
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<int32_t> top_k;
  std::vector<int32_t> eos_token_ids;
};
Result<GenerationDefaults> load_generation_defaults(const std::string& directory);

}  // namespace tandem::model
