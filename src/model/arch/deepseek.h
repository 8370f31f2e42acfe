// The DeepSeek-V2/V3 family: multi-head latent attention, dense-first layers, shared and routed experts.
#pragma once

#include <memory>
#include <vector>

#include "model/arch/group_gather.h"
#include "model/model.h"
#include "model/weights/tensor_spec.h"

namespace tandem::model {

class WeightSource;

// Every tensor of the layers that run (not the next-token-prediction module).
std::vector<TensorSpec> deepseek_tensors(const ModelConfig& config);

// What a rank of an attention group shows the others, at these limits. All zero where attention_tp_size is 1.
GatherBytes deepseek_gather_bytes(const ModelConfig& config, const LoadOptions& options);

// Scratch of one step at these limits, kernels' included.
int64_t deepseek_workspace_bytes(const ModelConfig& config, const LoadOptions& options, int num_threads);
MemoryPlan plan_deepseek_memory(const ModelConfig& config, const LoadOptions& options);

// weights: a source over deepseek_tensors(config).
Result<std::vector<std::unique_ptr<Model>>> build_deepseek(const ModelConfig& config, const WeightSource& weights,
                                                           const LoadOptions& options, std::vector<RankOptions> ranks);

}  // namespace tandem::model
