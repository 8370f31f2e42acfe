// Sizes of what deepseek.cc takes, in the same order. Running over is a CHECK there, so a mismatch cannot hide.
#include <algorithm>

#include "kernels/moe.h"
#include "model/arch/deepseek.h"
#include "model/arch/deepseek_weights.h"
#include "model/arch/gpu_step.h"
#include "model/weights/rope_table.h"

namespace tandem::model {

namespace {

constexpr int64_t kAlign = 64;

class Sizes {
 public:
  Sizes(const ModelConfig& config, const LoadOptions& options, const kernels::Context& ctx)
      : c_(config), options_(options), ctx_(ctx), rows_(options.limits.max_tokens), limits_(options.limits) {}

  int64_t total() const { return step_memory() + std::max({attention(), mlp(), logits()}); }

 private:
  int64_t round(int64_t bytes) const { return (bytes + kAlign - 1) / kAlign * kAlign; }
  int64_t f32(int64_t rows, int64_t cols) const { return round(rows * cols * 4); }
  int64_t act(int64_t rows, int64_t cols) const { return round(rows * cols * int64_t(size_of(ctx_.act_dtype()))); }
  int64_t linear(int64_t rows, int64_t n, int64_t k) const {
    return int64_t(kernels::linear_workspace_bytes(ctx_, rows, n, k));
  }

  // What lives through the step: residual stream, normalised input, choices, pointers to results.
  int64_t step_memory() const {
    const int64_t always = f32(rows_, c_.hidden_size) + act(rows_, c_.hidden_size), top_k = c_.gate.top_k;
    if (c_.num_routed_experts == 0) return always;
    return always + f32(rows_, c_.hidden_size) + f32(rows_, top_k) * 2 + round(rows_ * top_k * int64_t(sizeof(float*)));
  }

  int64_t attention() const {
    const kernels::MlaShape shape = c_.mla();
    const int64_t q_cols = int64_t(shape.num_heads) * (shape.nope_dim + shape.rope_dim);
    const int64_t out_cols = int64_t(shape.num_heads) * shape.v_dim;
    const int64_t width = c_.q_lora_rank + shape.row_width();
    const int64_t inner = std::max(
        {linear(rows_, width, c_.hidden_size), linear(rows_, q_cols, std::max(c_.q_lora_rank, c_.hidden_size))});
    const int64_t project =
        act(rows_, c_.hidden_size) + f32(rows_, width) + f32(rows_, q_cols) + act(rows_, c_.q_lora_rank) + inner;
    const int64_t mla =
        int64_t(kernels::mla_workspace_bytes(ctx_, shape, rows_, limits_.max_sequences, limits_.max_context));
    const int64_t attend = act(rows_, out_cols) + std::max(mla, linear(rows_, c_.hidden_size, out_cols));
    return act(rows_, q_cols) + std::max(project, attend);
  }

  int64_t dense(int64_t width) const {
    if (width == 0) return 0;
    return f32(rows_, 2 * width) + act(rows_, width) +
           std::max(linear(rows_, 2 * width, c_.hidden_size), linear(rows_, c_.hidden_size, width));
  }

  // The larger of what runs while rows travel and what runs on them.
  int64_t routed() const {
    const int64_t shared = dense(int64_t(c_.num_shared_experts) * c_.moe_intermediate_size);
    if (c_.num_routed_experts == 0) return 0;
    const experts::EpTopology& topology = options_.experts.topology;
    // A GPU's rank is alone, or takes everything for itself.
    const bool alone = is_cuda(ctx_.backend);
    const int64_t top_k = c_.gate.top_k, received = alone ? rows_ : rows_ * topology.num_ranks;
    const int64_t here = alone ? top_k : std::min<int64_t>(top_k, topology.slots_per_rank);  // choices on one rank
    const auto grouped = int64_t(kernels::moe_workspace_bytes(ctx_, received, int32_t(here), topology.slots_per_rank,
                                                              c_.hidden_size, c_.moe_intermediate_size));
    return std::max(shared, grouped);
  }

  int64_t mlp() const { return std::max(dense(c_.intermediate_size), routed()); }

  int64_t logits() const {
    const int64_t rows = limits_.max_logit_rows;
    return f32(rows, c_.hidden_size) + act(rows, c_.hidden_size) + linear(rows, c_.vocab_size, c_.hidden_size);
  }

  const ModelConfig& c_;
  const LoadOptions& options_;
  const kernels::Context& ctx_;
  const int64_t rows_;
  const ForwardLimits limits_;
};

}  // namespace

int64_t deepseek_workspace_bytes(const ModelConfig& config, const LoadOptions& options, int num_threads) {
  device::ThreadPool pool(num_threads);  // kernels size their scratch per thread
  const kernels::Context ctx{options.backend, options.isa, &pool, nullptr};
  return Sizes(config, options, ctx).total();
}

MemoryPlan plan_deepseek_memory(const ModelConfig& config, const LoadOptions& options) {
  const DeepseekBytes weights = deepseek_weight_bytes(config, options.backend);
  MemoryPlan plan;
  plan.weight_bytes = weights.shared + RopeValues::bytes(config, options.limits.max_context);
  plan.workspace_bytes = deepseek_workspace_bytes(config, options, options.num_threads);
  if (is_cuda(options.backend)) plan.workspace_bytes += GpuStep::bytes(config, options.limits);
  const parallel::ExchangeShape shape = exchange_shape(config, options);
  if (shape.top_k == 0) return plan;
  int64_t layers = 0;
  for (int32_t layer = 0; layer < config.num_layers; ++layer) layers += config.is_moe_layer(layer) ? 1 : 0;
  plan.expert_bytes = weights.expert * (layers * shape.slots_per_rank + options.experts.spare_slots);
  plan.exchange_bytes =
      is_cuda(options.backend) ? parallel::gpu_exchange_bytes(shape) : parallel::exchange_bytes(shape);
  return plan;
}

}  // namespace tandem::model
