#include "model/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "model/parse/config_reader.h"
#include "model/registry.h"

namespace tandem::model {

namespace {

using Range = ConfigReader::Range;
using kernels::GateMethod;
using kernels::GateScoring;

constexpr Range kDimension{1, 1 << 20};
constexpr Range kCount{0, 1 << 20};
constexpr int32_t kMaxExpertsPerToken = 64;  // what the kernels' combine takes

void read_shapes(ConfigReader& in, ModelConfig& c) {
  c.vocab_size = in.integer("vocab_size", {2, 1 << 24});
  c.hidden_size = in.integer("hidden_size", kDimension);
  c.num_layers = in.integer("num_hidden_layers", {1, 4096});
  c.first_k_dense_replace = in.integer_or("first_k_dense_replace", 0, kCount);
  c.moe_layer_freq = in.integer_or("moe_layer_freq", 1, {1, 4096});
  c.num_nextn_predict_layers = in.integer_or("num_nextn_predict_layers", 0, {0, 64});
  c.num_heads = in.integer("num_attention_heads", {1, 4096});
  c.q_lora_rank = in.integer_or("q_lora_rank", 0, kCount);
  c.kv_lora_rank = in.integer("kv_lora_rank", kDimension);
  c.nope_dim = in.integer("qk_nope_head_dim", {1, 4096});
  c.rope_dim = in.integer("qk_rope_head_dim", {2, 4096});
  c.v_dim = in.integer("v_head_dim", {1, 4096});
  c.rms_norm_eps = in.number_or("rms_norm_eps", 1e-6f, 1e-12, 1e-1);
  c.max_position_embeddings = in.integer("max_position_embeddings", {1, 1 << 26});
  c.tie_word_embeddings = in.boolean_or("tie_word_embeddings", false);
  // Rotary pairs; kernels read rows of the others as pairs of bf16.
  for (const auto& [key, value] : {std::pair{"qk_rope_head_dim", c.rope_dim}, std::pair{"qk_nope_head_dim", c.nope_dim},
                                   std::pair{"kv_lora_rank", c.kv_lora_rank}}) {
    if (value % 2 != 0) in.fail(key, fmt::format("must be even, is {}", value));
  }
  const int32_t kv_heads = in.integer_or("num_key_value_heads", c.num_heads, {1, 4096});
  if (kv_heads != c.num_heads) {
    in.fail("num_key_value_heads", fmt::format("must equal num_attention_heads {}, is {}", c.num_heads, kv_heads));
  }
  const int32_t qk_dim = in.integer_or("qk_head_dim", c.nope_dim + c.rope_dim, {1, 8192});
  if (qk_dim != c.nope_dim + c.rope_dim) {
    in.fail("qk_head_dim",
            fmt::format("must equal qk_nope_head_dim + qk_rope_head_dim = {}, is {}", c.nope_dim + c.rope_dim, qk_dim));
  }
}

void read_tokens(ConfigReader& in, ModelConfig& c) {
  const Range ids{0, std::max(c.vocab_size, 1) - 1};
  c.bos_token_id = in.integer_or("bos_token_id", -1, ids);
  c.eos_token_ids = in.integers("eos_token_id", ids);
}

// What would change the arithmetic in ways that the forward pass does not know.
void refuse_foreign_features(ConfigReader& in) {
  const std::string activation = in.string_or("hidden_act", "silu");
  if (activation != "silu") in.fail("hidden_act", fmt::format("'{}' is not supported (only silu)", activation));
  for (const char* flag : {"attention_bias", "mlp_bias", "use_qk_norm", "use_sliding_window"}) {
    if (in.boolean_or(flag, false)) in.fail(flag, "true is not supported");
  }
  if (!in.boolean_or("rope_interleave", true)) in.fail("rope_interleave", "false is not supported");
  for (const char* key : {"index_topk", "sliding_window", "attn_logit_softcapping", "final_logit_softcapping"}) {
    if (in.has(key)) in.fail(key, "is not supported");
  }
}

void read_experts(ConfigReader& in, const ArchitectureDefaults& defaults, ModelConfig& c) {
  kernels::GateConfig& g = c.gate;
  c.num_routed_experts = in.integer_or("n_routed_experts", 0, kCount);
  c.num_shared_experts = in.integer_or("n_shared_experts", 0, {0, 1024});
  g.num_experts = c.num_routed_experts;
  if (c.num_routed_experts == 0) {
    g = {};
    return;
  }
  c.moe_intermediate_size = in.integer("moe_intermediate_size", kDimension);
  g.top_k = in.integer("num_experts_per_tok", {1, std::min(c.num_routed_experts, kMaxExpertsPerToken)});
  g.num_groups = in.integer_or("n_group", defaults.num_groups, {1, c.num_routed_experts});
  g.top_k_groups = in.integer_or("topk_group", std::min(defaults.top_k_groups, g.num_groups), {1, g.num_groups});
  g.normalize = in.boolean_or("norm_topk_prob", defaults.normalize);
  g.scaling_factor = in.number_or("routed_scaling_factor", defaults.scaling_factor, 1e-6, 1e6);
  const std::string scoring = in.string_or("scoring_func", defaults.scoring_func);
  const std::string method = in.string_or("topk_method", defaults.topk_method);
  if (scoring == "softmax" && method == "greedy") {
    g.scoring = GateScoring::kSoftmax, g.method = GateMethod::kGreedy;
    g.num_groups = g.top_k_groups = 1;  // greedy looks at no groups
  } else if (scoring == "softmax" && method == "group_limited_greedy") {
    g.scoring = GateScoring::kSoftmax, g.method = GateMethod::kGroupLimitedGreedy;
  } else if (scoring == "sigmoid" && method == "noaux_tc") {
    g.scoring = GateScoring::kSigmoid, g.method = GateMethod::kNoAuxTc;
  } else {
    in.fail("topk_method",
            fmt::format("'{}' with scoring_func '{}' is not supported (sigmoid noaux_tc, softmax greedy, "
                        "softmax group_limited_greedy are)",
                        method, scoring));
  }
}

void check_experts(ConfigReader& in, const ModelConfig& c) {
  const kernels::GateConfig& g = c.gate;
  if (c.num_routed_experts == 0 || !in.status()) return;
  if (g.num_experts % g.num_groups != 0) {
    in.fail("n_group", fmt::format("{} does not divide n_routed_experts {}", g.num_groups, g.num_experts));
    return;
  }
  const int32_t per_group = g.num_experts / g.num_groups;
  if (g.top_k > per_group * g.top_k_groups) {
    in.fail("num_experts_per_tok", fmt::format("{} is more than the {} experts in topk_group {} groups of {}", g.top_k,
                                               per_group * g.top_k_groups, g.top_k_groups, per_group));
  }
  if (g.method == GateMethod::kNoAuxTc && g.num_groups > 1 && per_group < 2) {
    in.fail("n_group",
            fmt::format("{} leaves one expert per group; noaux_tc ranks groups by their best two", g.num_groups));
  }
}

// rope_scaling of the original configs, or rope_parameters as transformers 5 writes it (theta inside).
void read_rope(ConfigReader& in, ModelConfig& c) {
  c.rope_theta = in.number_or("rope_theta", 10000.0f, 1.0 + 1e-3, 1e12);
  const char* key = in.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const auto object = in.object(key);
  if (!object) return;
  ConfigReader rope(in.name() + ": " + key, *object);
  const std::string type = rope.has("rope_type") ? rope.string_or("rope_type", "") : rope.string_or("type", "default");
  c.rope_theta = rope.number_or("rope_theta", c.rope_theta, 1.0 + 1e-3, 1e12);
  if (type == "yarn") {
    rope.allow_only({"type", "rope_type", "rope_theta", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
                     "original_max_position_embeddings"});
    YarnConfig y;
    y.factor = rope.number_or("factor", y.factor, 1, 1e6);
    y.beta_fast = rope.number_or("beta_fast", y.beta_fast, 1e-3, 1e6);
    y.beta_slow = rope.number_or("beta_slow", y.beta_slow, 1e-3, 1e6);
    y.mscale = rope.number_or("mscale", y.mscale, 0, 100);
    y.mscale_all_dim = rope.number_or("mscale_all_dim", y.mscale_all_dim, 0, 100);
    y.original_max_position_embeddings =
        rope.integer_or("original_max_position_embeddings", y.original_max_position_embeddings, {1, 1 << 26});
    if (!rope.has("factor")) rope.fail("factor", "is missing");
    c.yarn = y;
  } else if (type == "default") {
    rope.allow_only({"type", "rope_type", "rope_theta"});
  } else {
    rope.fail("type", fmt::format("'{}' is not supported (only yarn)", type));
  }
  in.absorb(rope);
}

void read_quantization(ConfigReader& in, ModelConfig& c) {
  const auto object = in.object("quantization_config");
  if (!object) return;
  ConfigReader q(in.name() + ": quantization_config", *object);
  const std::string method = q.string_or("quant_method", "");
  const std::string format = q.string_or("fmt", "e4m3");
  const std::string activations = q.string_or("activation_scheme", "dynamic");
  const std::vector<int32_t> block = q.integers("weight_block_size", {1, 1 << 20});
  if (method != "fp8") {
    q.fail("quant_method", fmt::format("'{}' is not supported (only fp8)", method));
  } else if (format != "e4m3") {
    q.fail("fmt", fmt::format("'{}' is not supported (only e4m3)", format));
  } else if (activations != "dynamic") {
    q.fail("activation_scheme", fmt::format("'{}' is not supported (only dynamic)", activations));
  } else if (block != std::vector<int32_t>{128, 128}) {
    q.fail("weight_block_size", fmt::format("[{}] is not supported (only [128, 128])", fmt::join(block, ", ")));
  }
  in.absorb(q);
  c.fp8_blocks = true;
}

Result<simdjson::dom::object> object_of(const json::Document& document, std::string_view name) {
  simdjson::dom::object object;
  if (document.root().get(object) != simdjson::SUCCESS) {
    return invalid_input(fmt::format("{}: must be a JSON object", name));
  }
  return object;
}

Result<ModelConfig> read_config(ConfigReader& in) {
  const std::vector<std::string> names = in.strings("architectures");
  RETURN_IF_ERROR(in.status());
  if (names.size() != 1) {
    return invalid_input(fmt::format("{}: architectures must name one architecture, has {}", in.name(), names.size()));
  }
  const Architecture* architecture = find_architecture(names[0]);
  if (!architecture) {
    return invalid_input(fmt::format("{}: architecture '{}' is not supported (supported: {})", in.name(), names[0],
                                     supported_architectures()));
  }
  ModelConfig c;
  c.architecture = names[0];
  c.model_type = in.string_or("model_type", "");
  read_shapes(in, c);
  read_tokens(in, c);
  refuse_foreign_features(in);
  read_experts(in, architecture->defaults, c);
  check_experts(in, c);
  read_rope(in, c);
  read_quantization(in, c);
  RETURN_IF_ERROR(in.status());  // a number that is out of range reads as 0, which is no divisor
  bool any_dense = false;
  for (int32_t layer = 0; layer < c.num_layers; ++layer) any_dense = any_dense || !c.is_moe_layer(layer);
  if (any_dense) c.intermediate_size = in.integer("intermediate_size", kDimension);
  RETURN_IF_ERROR(in.status());
  return c;
}

}  // namespace

bool ModelConfig::is_moe_layer(int32_t layer) const {
  return num_routed_experts > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
}

float yarn_mscale(float factor, float mscale) { return factor <= 1 ? 1.0f : 0.1f * mscale * std::log(factor) + 1.0f; }

kernels::MlaShape ModelConfig::mla() const {
  kernels::MlaShape shape{num_heads, nope_dim, rope_dim, v_dim, kv_lora_rank, 0};
  shape.softmax_scale = 1.0f / std::sqrt(float(nope_dim + rope_dim));
  if (yarn && yarn->mscale_all_dim != 0) {
    const float mscale = yarn_mscale(yarn->factor, yarn->mscale_all_dim);
    shape.softmax_scale *= mscale * mscale;
  }
  return shape;
}

uint64_t hash_config(const ModelConfig& c) {
  const kernels::GateConfig& g = c.gate;
  const YarnConfig y = c.yarn.value_or(YarnConfig{});
  const std::string text =
      fmt::format("{} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {}",
                  c.architecture, c.vocab_size, c.hidden_size, c.num_layers, c.first_k_dense_replace, c.moe_layer_freq,
                  c.intermediate_size, c.moe_intermediate_size, c.num_routed_experts, c.num_shared_experts, c.num_heads,
                  c.q_lora_rank, c.kv_lora_rank, c.nope_dim, c.rope_dim, c.v_dim, g.top_k, g.num_groups, g.top_k_groups,
                  int(g.scoring), int(g.method), g.normalize, g.scaling_factor, c.rms_norm_eps, c.rope_theta,
                  c.yarn.has_value(), y.factor, y.beta_fast, y.beta_slow, y.mscale, y.mscale_all_dim,
                  y.original_max_position_embeddings, c.tie_word_embeddings);
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a, 64 bits
  for (char byte : text) hash = (hash ^ uint8_t(byte)) * 0x100000001b3u;
  return hash;
}

Result<ModelConfig> parse_config(std::string_view json, std::string_view overrides, std::string_view name) {
  ASSIGN_OR_RETURN(const json::Document document, json::Document::parse(json, name));
  ASSIGN_OR_RETURN(const simdjson::dom::object object, object_of(document, name));
  std::optional<json::Document> override_document;
  std::optional<simdjson::dom::object> override_object;
  if (!overrides.empty()) {
    constexpr std::string_view kFlag = "--json-model-override-args";
    ASSIGN_OR_RETURN(override_document, json::Document::parse(overrides, kFlag));
    ASSIGN_OR_RETURN(override_object, object_of(*override_document, kFlag));
  }
  ConfigReader in{std::string(name), object, override_object};
  ASSIGN_OR_RETURN(ModelConfig config, read_config(in));
  // How many layers the checkpoint has, whatever the overrides cut.
  ConfigReader plain{std::string(name), object};
  config.checkpoint_num_layers = plain.integer_or("num_hidden_layers", config.num_layers, {1, 4096});
  RETURN_IF_ERROR(plain.status());
  return config;
}

}  // namespace tandem::model
