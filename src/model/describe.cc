// `tandem model show`: from config.json and the shards' headers; no weight is read.
#include <fmt/format.h>

#include <array>

#include "model/checkpoint/checkpoint.h"
#include "model/model.h"
#include "model/registry.h"
#include "model/weights/weight_source.h"

namespace tandem::model {

namespace {

struct Row {
  int64_t tensors = 0, parameters = 0, bytes = 0;

  void add(int64_t more_parameters, int64_t more_bytes) {
    ++tensors;
    parameters += more_parameters;
    bytes += more_bytes;
  }
};

std::string human_bytes(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = double(bytes);
  int unit = 0;
  for (; value >= 1024 && unit < 4; ++unit) value /= 1024;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string human_count(int64_t count) {
  if (count >= 1'000'000'000) return fmt::format("{:.2f} G", double(count) / 1e9);
  if (count >= 1'000'000) return fmt::format("{:.2f} M", double(count) / 1e6);
  return std::to_string(count);
}

std::string line(std::string_view name, const Row& row) {
  return fmt::format("  {:<24} {:>8} {:>12} {:>12}\n", name, row.tensors, human_count(row.parameters),
                     human_bytes(row.bytes));
}

std::string gate_summary(const kernels::GateConfig& gate) {
  std::string text = gate.scoring == kernels::GateScoring::kSigmoid ? "sigmoid" : "softmax";
  switch (gate.method) {
    case kernels::GateMethod::kGreedy: text += ", greedy"; break;
    case kernels::GateMethod::kGroupLimitedGreedy: text += ", group-limited"; break;
    case kernels::GateMethod::kNoAuxTc: text += ", noaux_tc"; break;
  }
  if (gate.num_groups > 1) text += fmt::format(", {} of {} groups", gate.top_k_groups, gate.num_groups);
  return text + fmt::format(", weights {}x {:g}", gate.normalize ? "normalised " : "", gate.scaling_factor);
}

std::string config_summary(const ModelConfig& c) {
  int32_t moe_layers = 0;
  for (int32_t layer = 0; layer < c.num_layers; ++layer) moe_layers += c.is_moe_layer(layer);
  std::string out = fmt::format("  {} ({}), {} layers: {} dense, {} with experts\n", c.architecture, c.model_type,
                                c.num_layers, c.num_layers - moe_layers, moe_layers);
  out += fmt::format("  hidden {}, vocabulary {}, dense width {}, context {}\n", c.hidden_size, c.vocab_size,
                     c.intermediate_size, c.max_position_embeddings);
  if (moe_layers > 0) {
    out += fmt::format("  experts: {} routed (width {}), {} per token, {} shared; gate {}\n", c.num_routed_experts,
                       c.moe_intermediate_size, c.gate.top_k, c.num_shared_experts, gate_summary(c.gate));
  }
  out += fmt::format("  attention: {} heads, q_lora {}, kv_lora {}, head {} + {} rotary, value {}\n", c.num_heads,
                     c.q_lora_rank > 0 ? std::to_string(c.q_lora_rank) : "none", c.kv_lora_rank, c.nope_dim, c.rope_dim,
                     c.v_dim);
  out += fmt::format(
      "  rotary: theta {:g}{}\n", c.rope_theta,
      c.yarn ? fmt::format(", yarn {:g}x over {}", c.yarn->factor, c.yarn->original_max_position_embeddings) : "");
  out += fmt::format("  cache: {} bytes per token in bf16 ({} values in each of {} layers)\n",
                     2 * c.mla().row_width() * c.num_layers, c.mla().row_width(), c.num_layers);
  return out + fmt::format("  projections: {}\n", c.fp8_blocks ? "FP8 E4M3 with 128x128 scales" : "bf16 or f32");
}

// Parameters that one token's forward pass multiplies with: of the routed experts top_k, no embedding.
int64_t active_parameters(const ModelConfig& c, const std::array<Row, kNumTensorGroups>& groups) {
  int64_t active = 0;
  for (int g = 0; g < kNumTensorGroups; ++g) {
    const int64_t parameters = groups[size_t(g)].parameters;
    if (TensorGroup(g) == TensorGroup::kEmbedding) {
      active += c.tie_word_embeddings ? parameters : 0;
    } else if (TensorGroup(g) == TensorGroup::kRoutedExperts) {
      active += c.num_routed_experts > 0 ? parameters / c.num_routed_experts * c.gate.top_k : 0;
    } else {
      active += parameters;
    }
  }
  return active;
}

std::string table(const ModelConfig& c, const std::array<Row, kNumTensorGroups>& groups,
                  const std::vector<std::pair<std::string, Row>>& others) {
  std::string out = fmt::format("  {:<24} {:>8} {:>12} {:>12}\n", "", "tensors", "parameters", "bytes");
  Row total;
  for (int g = 0; g < kNumTensorGroups; ++g) {
    const Row& row = groups[size_t(g)];
    if (row.tensors == 0) continue;
    out += line(to_string(TensorGroup(g)), row);
    total.tensors += row.tensors, total.parameters += row.parameters, total.bytes += row.bytes;
  }
  out += line("total", total);
  out += fmt::format("  {:<24} {:>8} {:>12}\n", "used per token", "", human_count(active_parameters(c, groups)));
  for (const auto& [name, row] : others) {
    if (row.tensors > 0) out += line(name, row);
  }
  return out;
}

// A directory without weights: what an invented checkpoint of these shapes would hold.
std::string describe_shapes(const ModelConfig& config, const std::vector<TensorSpec>& specs) {
  std::array<Row, kNumTensorGroups> groups;
  for (const TensorSpec& spec : specs) {
    const bool fp8 = spec.is_fp8(config.fp8_blocks);
    const int64_t width = fp8 ? 1 : spec.role == TensorRole::kBias ? 4 : 2;
    Row& row = groups[size_t(spec.group)];
    row.add(spec.num_elements(), spec.num_elements() * width);
    if (fp8) row.bytes += spec.scale_rows() * spec.scale_cols() * 4;
  }
  return "  no safetensors here: sizes by config.json\n" + table(config, groups, {});
}

Row row_of(const std::vector<const Checkpoint::Tensor*>& tensors) {
  Row row;
  for (const Checkpoint::Tensor* tensor : tensors) {
    const bool is_scale = tensor->entry->name.ends_with("_scale_inv");
    row.add(is_scale ? 0 : tensor->entry->num_elements(), int64_t(tensor->bytes()));
  }
  return row;
}

std::string describe_stored(const ModelConfig& config, const WeightSource& source, const Checkpoint& checkpoint) {
  std::array<Row, kNumTensorGroups> groups;
  for (const TensorSpec& spec : source.specs()) {
    Row& row = groups[size_t(spec.group)];
    const Checkpoint::Tensor& tensor = *checkpoint.find(spec.name);
    row.add(spec.num_elements(), int64_t(tensor.bytes()));
    if (tensor.entry->dtype->type == device::DType::kF8E4M3) {
      row.bytes += int64_t(checkpoint.find(spec.name + "_scale_inv")->bytes());
    }
  }
  const UnusedTensors& unused = source.unused();
  std::string out = fmt::format("  {} shards, {} tensors\n", checkpoint.num_shards(), checkpoint.num_tensors());
  out += table(config, groups,
               {{"next-token module", row_of(unused.next_token_prediction)},
                {"cut layers", row_of(unused.cut_layers)},
                {"copy of the tied head", row_of(unused.tied_head)},
                {"unknown, not used", row_of(unused.surplus)}});
  return out;
}

}  // namespace

Result<std::string> describe_checkpoint(const std::string& directory, const std::string& overrides) {
  ASSIGN_OR_RETURN(const ModelConfig config, load_config(directory, overrides));
  const Architecture* architecture = find_architecture(config.architecture);
  CHECK(architecture);
  std::vector<TensorSpec> specs = architecture->list_tensors(config);
  const std::string head = directory + "\n" + config_summary(config);
  if (!Checkpoint::has_weights(directory)) return head + describe_shapes(config, specs);
  ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::open(directory));
  ASSIGN_OR_RETURN(const WeightSource source,
                   WeightSource::from_checkpoint(std::move(checkpoint), std::move(specs), config));
  return head + describe_stored(config, source, *source.checkpoint());
}

}  // namespace tandem::model
