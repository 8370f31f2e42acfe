// The visible table of architectures: what config.json names, what it means where the file is silent, who builds it.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/model.h"

namespace tandem::model {

class WeightSource;
struct TensorSpec;

// Fields that a config.json of the architecture may leave out.
struct ArchitectureDefaults {
  int32_t num_groups = 1, top_k_groups = 1;
  std::string_view scoring_func, topk_method;
  bool normalize = false;
  float scaling_factor = 1.0f;
};

struct Architecture {
  std::string_view name;  // as in config.json's "architectures"
  ArchitectureDefaults defaults;
  std::vector<TensorSpec> (*list_tensors)(const ModelConfig& config);
  // weights: a source over list_tensors(config), in which every tensor was checked. options.experts: complete and
  // valid.
  Result<std::vector<std::unique_ptr<Model>>> (*build)(const ModelConfig& config, const WeightSource& weights,
                                                       const LoadOptions& options, std::vector<RankOptions> ranks);
  MemoryPlan (*plan_memory)(const ModelConfig& config, const LoadOptions& options);
};

std::span<const Architecture> architectures();
// Null: not supported.
const Architecture* find_architecture(std::string_view name);
// "A, B" for messages.
std::string supported_architectures();

}  // namespace tandem::model
