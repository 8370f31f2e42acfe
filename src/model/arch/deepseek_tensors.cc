#include <fmt/format.h>

#include "model/arch/deepseek.h"

namespace tandem::model {

namespace {

using Group = TensorGroup;
using Role = TensorRole;

void add_attention(const ModelConfig& c, const std::string& layer, std::vector<TensorSpec>& out) {
  const std::string p = layer + "self_attn.";
  const int64_t hidden = c.hidden_size, heads = c.num_heads, q_rows = heads * (c.nope_dim + c.rope_dim);
  if (c.q_lora_rank > 0) {
    out.push_back({p + "q_a_proj.weight", c.q_lora_rank, hidden, Role::kProjection, Group::kAttention});
    out.push_back({p + "q_a_layernorm.weight", c.q_lora_rank, 0, Role::kGain, Group::kNorms});
    out.push_back({p + "q_b_proj.weight", q_rows, c.q_lora_rank, Role::kProjection, Group::kAttention});
  } else {
    out.push_back({p + "q_proj.weight", q_rows, hidden, Role::kProjection, Group::kAttention});
  }
  out.push_back(
      {p + "kv_a_proj_with_mqa.weight", c.kv_lora_rank + c.rope_dim, hidden, Role::kProjection, Group::kAttention});
  out.push_back({p + "kv_a_layernorm.weight", c.kv_lora_rank, 0, Role::kGain, Group::kNorms});
  out.push_back(
      {p + "kv_b_proj.weight", heads * (c.nope_dim + c.v_dim), c.kv_lora_rank, Role::kProjection, Group::kAttention});
  out.push_back({p + "o_proj.weight", hidden, heads * c.v_dim, Role::kProjection, Group::kAttention});
}

void add_mlp(const std::string& prefix, int64_t hidden, int64_t width, Group group, std::vector<TensorSpec>& out) {
  out.push_back({prefix + "gate_proj.weight", width, hidden, Role::kProjection, group});
  out.push_back({prefix + "up_proj.weight", width, hidden, Role::kProjection, group});
  out.push_back({prefix + "down_proj.weight", hidden, width, Role::kProjection, group});
}

void add_experts(const ModelConfig& c, const std::string& layer, std::vector<TensorSpec>& out) {
  const int64_t hidden = c.hidden_size, width = c.moe_intermediate_size;
  out.push_back({layer + "mlp.gate.weight", c.num_routed_experts, hidden, Role::kRouter, Group::kRouter});
  if (c.gate.method == kernels::GateMethod::kNoAuxTc) {
    out.push_back({layer + "mlp.gate.e_score_correction_bias", c.num_routed_experts, 0, Role::kBias, Group::kRouter});
  }
  if (c.num_shared_experts > 0) {
    add_mlp(layer + "mlp.shared_experts.", hidden, width * c.num_shared_experts, Group::kSharedExperts, out);
  }
  for (int32_t e = 0; e < c.num_routed_experts; ++e) {
    add_mlp(fmt::format("{}mlp.experts.{}.", layer, e), hidden, width, Group::kRoutedExperts, out);
  }
}

}  // namespace

std::vector<TensorSpec> deepseek_tensors(const ModelConfig& c) {
  std::vector<TensorSpec> out;
  out.push_back({"model.embed_tokens.weight", c.vocab_size, c.hidden_size, Role::kTable, Group::kEmbedding});
  for (int32_t i = 0; i < c.num_layers; ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    out.push_back({layer + "input_layernorm.weight", c.hidden_size, 0, Role::kGain, Group::kNorms});
    add_attention(c, layer, out);
    out.push_back({layer + "post_attention_layernorm.weight", c.hidden_size, 0, Role::kGain, Group::kNorms});
    if (c.is_moe_layer(i)) {
      add_experts(c, layer, out);
    } else {
      add_mlp(layer + "mlp.", c.hidden_size, c.intermediate_size, Group::kDenseMlp, out);
    }
  }
  out.push_back({"model.norm.weight", c.hidden_size, 0, Role::kGain, Group::kNorms});
  if (!c.tie_word_embeddings) {
    out.push_back({"lm_head.weight", c.vocab_size, c.hidden_size, Role::kTable, Group::kHead});
  }
  return out;
}

}  // namespace tandem::model
