#include "model/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "model/model.h"
#include "model/registry.h"
#include "model/weights/rope_table.h"
#include "model/weights/tensor_spec.h"
#include "tests/model/model_runner.h"

namespace tandem::model::testing {
namespace {

using kernels::GateMethod;
using kernels::GateScoring;

std::string read_file(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

const std::string& r1() {
  static const std::string text = read_file(data_path("configs/deepseek-r1/config.json"));
  return text;
}

// The message of the error that R1's config with these overrides gives; "" if it parses.
std::string fault(const std::string& overrides) {
  const auto config = parse_config(r1(), overrides, "config.json");
  return config ? "" : config.error().message;
}

TEST(ModelConfig, ReadsDeepSeekR1) {
  const auto config = parse_config(r1(), "", "config.json");
  ASSERT_TRUE(config) << config.error().message;
  const ModelConfig& c = *config;
  EXPECT_EQ(c.num_layers, 61);
  EXPECT_EQ(c.checkpoint_num_layers, 61);
  EXPECT_EQ(c.num_nextn_predict_layers, 1);
  EXPECT_EQ(c.q_lora_rank, 1536);
  EXPECT_EQ(c.num_routed_experts, 256);
  EXPECT_EQ(c.gate.top_k, 8);
  EXPECT_EQ(c.gate.num_groups, 8);
  EXPECT_EQ(c.gate.top_k_groups, 4);
  EXPECT_EQ(c.gate.method, GateMethod::kNoAuxTc);
  EXPECT_EQ(c.gate.scoring, GateScoring::kSigmoid);
  EXPECT_TRUE(c.gate.normalize);
  EXPECT_FLOAT_EQ(c.gate.scaling_factor, 2.5f);
  EXPECT_TRUE(c.fp8_blocks);
  EXPECT_EQ(c.bos_token_id, 0);
  EXPECT_EQ(c.eos_token_ids, std::vector<int32_t>{1});
  EXPECT_FALSE(c.is_moe_layer(2));
  EXPECT_TRUE(c.is_moe_layer(3));
  ASSERT_TRUE(c.yarn);
  EXPECT_FLOAT_EQ(c.yarn->factor, 40);
  EXPECT_EQ(c.mla().row_width(), 576);
  const double mscale = 0.1 * std::log(40.0) + 1;
  EXPECT_NEAR(c.mla().softmax_scale, mscale * mscale / std::sqrt(192.0), 1e-6);
}

TEST(ModelConfig, OverridesReplaceTopLevelKeys) {
  const auto config = parse_config(r1(), R"({"num_hidden_layers": 20, "eos_token_id": [1, 7]})", "config.json");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->num_layers, 20);
  EXPECT_EQ(config->checkpoint_num_layers, 61);
  EXPECT_EQ(config->eos_token_ids, (std::vector<int32_t>{1, 7}));
}

TEST(ModelConfig, AbsentFieldsMeanWhatTheArchitecturesCodeMeans) {
  const std::string overrides =
      R"({"architectures": ["DeepseekV2ForCausalLM"], "scoring_func": null, "topk_method": null, "n_group": null,
          "topk_group": null, "norm_topk_prob": null, "routed_scaling_factor": null, "q_lora_rank": null,
          "num_key_value_heads": null, "rope_scaling": null, "quantization_config": null, "bos_token_id": null})";
  const auto v2 = parse_config(r1(), overrides, "config.json");
  ASSERT_TRUE(v2) << v2.error().message;
  EXPECT_EQ(v2->gate.scoring, GateScoring::kSoftmax);
  EXPECT_EQ(v2->gate.method, GateMethod::kGreedy);
  EXPECT_EQ(v2->gate.num_groups, 1);
  EXPECT_FALSE(v2->gate.normalize);
  EXPECT_EQ(v2->q_lora_rank, 0);
  EXPECT_EQ(v2->bos_token_id, -1);
  EXPECT_FALSE(v2->yarn);
  EXPECT_FALSE(v2->fp8_blocks);
  const auto v3 = parse_config(r1(), R"({"scoring_func": null, "topk_method": null, "n_group": null})", "config.json");
  ASSERT_TRUE(v3) << v3.error().message;
  EXPECT_EQ(v3->gate.method, GateMethod::kNoAuxTc);
  EXPECT_EQ(v3->gate.num_groups, 8);
}

TEST(ModelConfig, ReadsRopeParametersOfTransformers5) {
  const auto config = parse_config(
      r1(),
      R"({"rope_scaling": null, "rope_theta": null, "rope_parameters": {"rope_type": "yarn", "rope_theta": 50000.0,
                "factor": 4, "original_max_position_embeddings": 8192, "mscale": 1.0, "mscale_all_dim": 1.0,
                "beta_fast": 32.0, "beta_slow": 1.0}})",
      "config.json");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_FLOAT_EQ(config->rope_theta, 50000);
  ASSERT_TRUE(config->yarn);
  EXPECT_FLOAT_EQ(config->yarn->factor, 4);
}

TEST(ModelConfig, AModelWithoutExpertsIsDenseThroughout) {
  const auto config = parse_config(r1(), R"({"n_routed_experts": null})", "config.json");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->num_routed_experts, 0);
  EXPECT_FALSE(config->is_moe_layer(60));
}

struct BadConfig {
  const char* overrides;
  const char* message;  // a part of the error
};

TEST(ModelConfig, RefusesWhatTheForwardPassDoesNotKnowByName) {
  const BadConfig cases[] = {
      {R"({"architectures": ["LlamaForCausalLM"]})", "architecture 'LlamaForCausalLM' is not supported"},
      {R"({"architectures": ["LlamaForCausalLM"]})", "DeepseekV2ForCausalLM, DeepseekV3ForCausalLM"},
      {R"({"architectures": ["DeepseekV32ForCausalLM"]})", "'DeepseekV32ForCausalLM'"},
      {R"({"architectures": []})", "architectures must name one"},
      {R"({"architectures": "DeepseekV3ForCausalLM"})", "architectures must be an array of strings"},
      {R"({"hidden_act": "gelu"})", "hidden_act 'gelu'"},
      {R"({"attention_bias": true})", "attention_bias true"},
      {R"({"mlp_bias": true})", "mlp_bias true"},
      {R"({"rope_interleave": false})", "rope_interleave false"},
      {R"({"index_topk": 2048})", "index_topk is not supported"},
      {R"({"num_key_value_heads": 8})", "num_key_value_heads must equal num_attention_heads 128, is 8"},
      {R"({"qk_head_dim": 64})", "qk_head_dim must equal"},
      {R"({"rope_scaling": {"type": "linear", "factor": 2}})", "rope_scaling: type 'linear' is not supported"},
      {R"({"rope_scaling": {"rope_type": "llama3", "factor": 2}})", "type 'llama3'"},
      {R"({"rope_scaling": {"type": "yarn"}})", "factor is missing"},
      {R"({"rope_scaling": {"type": "yarn", "factor": 2, "truncate": false}})", "truncate is not supported"},
      {R"({"rope_scaling": {"type": "yarn", "factor": 0.5}})", "factor must be in"},
      {R"({"rope_scaling": {"type": "yarn", "factor": 2, "attention_factor": 1.5}})", "attention_factor"},
      {R"({"rope_scaling": [1]})", "rope_scaling must be an object"},
      {R"({"scoring_func": "softmax"})", "topk_method 'noaux_tc' with scoring_func 'softmax'"},
      {R"({"topk_method": "expert_choice"})", "'expert_choice'"},
      {R"({"quantization_config": {"quant_method": "awq"}})", "quant_method 'awq'"},
      {R"({"quantization_config": {"quant_method": "fp8", "fmt": "e5m2"}})", "fmt 'e5m2'"},
      {R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}})",
       "weight_block_size [64, 64]"},
      {R"({"quantization_config": {"quant_method": "fp8"}})", "weight_block_size []"},
      {R"({"quantization_config": {"quant_method": "fp8", "activation_scheme": "static",
           "weight_block_size": [128, 128]}})",
       "activation_scheme 'static'"},
  };
  for (const BadConfig& c : cases) {
    EXPECT_NE(fault(c.overrides).find(c.message), std::string::npos) << c.overrides << " gave: " << fault(c.overrides);
    EXPECT_EQ(fault(c.overrides).find('\n'), std::string::npos);
  }
}

TEST(ModelConfig, ChecksEveryNumber) {
  const BadConfig cases[] = {
      {R"({"vocab_size": 0})", "vocab_size must be in"},
      {R"({"vocab_size": "many"})", "vocab_size must be an integer, is \"many\""},
      {R"({"vocab_size": 3.5})", "vocab_size must be an integer"},
      {R"({"vocab_size": null})", "vocab_size is missing"},
      {R"({"hidden_size": -1})", "hidden_size must be in"},
      {R"({"hidden_size": 99999999999})", "hidden_size must be in"},
      {R"({"num_hidden_layers": 0})", "num_hidden_layers must be in"},
      {R"({"num_attention_heads": 0})", "num_attention_heads must be in"},
      {R"({"kv_lora_rank": null})", "kv_lora_rank is missing"},
      {R"({"qk_rope_head_dim": 63})", "qk_rope_head_dim must be even, is 63"},
      {R"({"qk_nope_head_dim": 127})", "qk_nope_head_dim must be even, is 127"},
      {R"({"kv_lora_rank": 511})", "kv_lora_rank must be even, is 511"},
      {R"({"moe_layer_freq": 0})", "moe_layer_freq must be in"},
      {R"({"moe_layer_freq": [1, 0]})", "moe_layer_freq must be an integer"},
      {R"({"rms_norm_eps": 0})", "rms_norm_eps must be in"},
      {R"({"rope_theta": -1})", "rope_theta must be in"},
      {R"({"n_group": 7})", "n_group 7 does not divide n_routed_experts 256"},
      {R"({"topk_group": 9})", "topk_group must be in [1, 8], is 9"},
      {R"({"num_experts_per_tok": 300})", "num_experts_per_tok must be in [1, 64], is 300"},
      {R"({"num_experts_per_tok": 33, "topk_group": 1})",
       "num_experts_per_tok 33 is more than the 32 experts in topk_group 1"},
      {R"({"n_group": 256, "topk_group": 16})", "n_group 256 leaves one expert per group"},
      {R"({"routed_scaling_factor": 0})", "routed_scaling_factor must be in"},
      {R"({"norm_topk_prob": 1})", "norm_topk_prob must be true or false, is 1"},
      {R"({"eos_token_id": 129280})", "eos_token_id must be in [0, 129279]"},
      {R"({"eos_token_id": [1, -1]})", "eos_token_id must be in"},
      {R"({"moe_intermediate_size": null})", "moe_intermediate_size is missing"},
      {R"({"intermediate_size": null})", "intermediate_size is missing"},
      {R"({"max_position_embeddings": 0})", "max_position_embeddings must be in"},
      {"[1]", "--json-model-override-args: must be a JSON object"},
      {"{oops}", "--json-model-override-args: not valid JSON"},
  };
  for (const BadConfig& c : cases) {
    EXPECT_NE(fault(c.overrides).find(c.message), std::string::npos) << c.overrides << " gave: " << fault(c.overrides);
  }
  const auto broken = parse_config("{", "", "DIR/config.json");
  ASSERT_FALSE(broken);
  EXPECT_EQ(broken.error().message.rfind("DIR/config.json: not valid JSON", 0), 0u);
  EXPECT_FALSE(parse_config("[]", "", "x"));
}

TEST(ModelConfig, AMoeLayerFrequencyOfZeroIsRefusedBeforeItDivides) {
  // With no dense layer in front every layer is asked whether it is one of experts.
  const std::string text =
      R"({"architectures":["DeepseekV3ForCausalLM"],"n_routed_experts":2,"moe_layer_freq":0,"num_hidden_layers":2})";
  const auto config = parse_config(text, "", "config.json");
  ASSERT_FALSE(config);
  EXPECT_EQ(config.error().code, ErrorCode::kInvalidInput);
}

TEST(ModelConfig, EveryRowOfTheRegistryParses) {
  for (const Architecture& architecture : architectures()) {
    const std::string overrides =
        "{\"architectures\": [\"" + std::string(architecture.name) +
        "\"], \"scoring_func\": null, \"topk_method\": null, \"n_group\": null, \"topk_group\": null}";
    const auto config = parse_config(r1(), overrides, "config.json");
    ASSERT_TRUE(config) << config.error().message;
    EXPECT_EQ(config->architecture, architecture.name);
    EXPECT_FALSE(architecture.list_tensors(*config).empty());
  }
}

TEST(ModelConfig, HashChangesWithWhatTheForwardPassReads) {
  const auto base = parse_config(r1(), "", "c"), again = parse_config(r1(), "", "c");
  EXPECT_EQ(hash_config(*base), hash_config(*again));
  for (const char* overrides :
       {R"({"num_hidden_layers": 60})", R"({"rms_norm_eps": 1e-5})", R"({"rope_scaling": null})",
        R"({"routed_scaling_factor": 2.0})", R"({"topk_group": 3})", R"({"tie_word_embeddings": true})"}) {
    EXPECT_NE(hash_config(*parse_config(r1(), overrides, "c")), hash_config(*base)) << overrides;
  }
}

// Yarn leaves fast pairs alone, divides slow ones by the factor, and blends between.
TEST(RopeFrequencies, YarnStretchesSlowPairsOnly) {
  const auto config = parse_config(r1(), "", "c"), plain = parse_config(r1(), R"({"rope_scaling": null})", "c");
  const std::vector<float> yarn = rope_frequencies(*config), base = rope_frequencies(*plain);
  ASSERT_EQ(yarn.size(), 32u);
  EXPECT_FLOAT_EQ(base[1], std::pow(10000.0f, -2.0f / 64));
  // Borders by DeepSeek's formula for theta 10000, 4096 positions, 32 and 1 turns: pairs 10 and 23.
  for (size_t i = 0; i <= 10; ++i) EXPECT_FLOAT_EQ(yarn[i], base[i]) << i;
  for (size_t i = 23; i < 32; ++i) EXPECT_FLOAT_EQ(yarn[i], base[i] / 40) << i;
  for (size_t i = 11; i < 23; ++i) {
    EXPECT_LT(yarn[i], base[i]) << i;
    EXPECT_GT(yarn[i], base[i] / 40) << i;
  }
}

TEST(GenerationDefaults, AreReadWhereTheFileIsAndEmptyWhereNot) {
  const auto tiny = load_generation_defaults(tiny_directory());
  ASSERT_TRUE(tiny) << tiny.error().message;
  EXPECT_FLOAT_EQ(*tiny->temperature, 0.6f);
  EXPECT_FLOAT_EQ(*tiny->top_p, 0.95f);
  EXPECT_FALSE(tiny->top_k);
  EXPECT_EQ(tiny->eos_token_ids, std::vector<int32_t>{1});
  const auto none = load_generation_defaults(data_path("configs/s"));
  ASSERT_TRUE(none);
  EXPECT_FALSE(none->temperature);
}

}  // namespace
}  // namespace tandem::model::testing
