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
      : c_(config),
        options_(options),
        ctx_(ctx),
        rows_(options.limits.max_tokens),
        own_(own_rows(options)),
        limits_(options.limits) {}

  int64_t total() const { return step_memory() + std::max({attention(), mlp(), logits()}); }

  // Of a batch's rows, the most that a rank works on alone; each of two halves is shared out by itself.
  static int64_t own_rows(const LoadOptions& options) {
    const int64_t rows = options.limits.max_tokens, size = options.attention_tp_size;
    return std::min(rows, parallel::largest_share(rows, int32_t(size)) + (options.experts.two_batches ? 1 : 0));
  }

 private:
  int64_t round(int64_t bytes) const { return (bytes + kAlign - 1) / kAlign * kAlign; }
  int64_t f32(int64_t rows, int64_t cols) const { return round(rows * cols * 4); }
  int64_t act(int64_t rows, int64_t cols) const { return round(rows * cols * int64_t(size_of(ctx_.act_dtype()))); }
  int64_t linear(int64_t rows, int64_t n, int64_t k) const {
    return int64_t(kernels::linear_workspace_bytes(ctx_, rows, n, k));
  }

  // What lives through the step: residual stream, normalised input, choices, pointers to results.
  int64_t step_memory() const {
    const int64_t always = f32(own_, c_.hidden_size) + act(own_, c_.hidden_size), top_k = c_.gate.top_k;
    if (c_.num_routed_experts == 0) return always;
    return always + f32(own_, c_.hidden_size) + f32(own_, top_k) * 2 + round(own_ * top_k * int64_t(sizeof(float*)));
  }

  int64_t attention() const {
    kernels::MlaShape shape = c_.mla();
    const int64_t all_out_cols = int64_t(shape.num_heads) * shape.v_dim;
    shape.num_heads /= options_.attention_tp_size;
    const int64_t q_cols = int64_t(shape.num_heads) * (shape.nope_dim + shape.rope_dim);
    const int64_t out_cols = int64_t(shape.num_heads) * shape.v_dim;
    const int64_t width = c_.q_lora_rank + shape.row_width();
    const int64_t latent = std::max(c_.q_lora_rank, c_.hidden_size);
    const int64_t inner = std::max({linear(own_, width, c_.hidden_size), linear(rows_, q_cols, latent)});
    const int64_t gathered = options_.attention_tp_size > 1 ? act(rows_, latent) : 0;
    const int64_t project = act(own_, c_.hidden_size) + f32(own_, width) + f32(rows_, q_cols) +
                            act(own_, c_.q_lora_rank) + gathered + inner;
    const int64_t mla =
        int64_t(kernels::mla_workspace_bytes(ctx_, shape, rows_, limits_.max_sequences, limits_.max_context));
    const int64_t joined = options_.attention_tp_size > 1 ? act(own_, all_out_cols) : act(rows_, out_cols);
    const int64_t attend = joined + std::max(mla, linear(own_, c_.hidden_size, all_out_cols));
    return act(rows_, q_cols) + std::max(project, attend);
  }

  int64_t dense(int64_t width) const {
    if (width == 0) return 0;
    return f32(own_, 2 * width) + act(own_, width) +
           std::max(linear(own_, 2 * width, c_.hidden_size), linear(own_, c_.hidden_size, width));
  }

  // The larger of what runs while rows travel and what runs on them.
  int64_t routed() const {
    const int64_t shared = dense(int64_t(c_.num_shared_experts) * c_.moe_intermediate_size);
    if (c_.num_routed_experts == 0) return 0;
    const experts::EpTopology& topology = options_.experts.topology;
    // A rank that is alone, or takes everything for itself.
    const bool alone = topology.num_ranks == 1 || options_.loop_back;
    const int64_t top_k = c_.gate.top_k, received = alone ? own_ : own_ * topology.num_ranks;
    // Choices of a token on one rank; on GPUs there is room for all of them.
    const int64_t here = alone || is_cuda(ctx_.backend) ? top_k : std::min<int64_t>(top_k, topology.slots_per_rank);
    const auto grouped = int64_t(kernels::moe_workspace_bytes(ctx_, received, int32_t(here), topology.slots_per_rank,
                                                              c_.hidden_size, c_.moe_intermediate_size));
    return std::max(shared, grouped);
  }

  int64_t mlp() const { return std::max(dense(c_.intermediate_size), routed()); }

  int64_t logits() const {
    const int64_t rows = limits_.max_logit_rows;
    return f32(rows, c_.hidden_size) + f32(rows, 1) + act(rows, c_.hidden_size) +
           linear(rows, c_.vocab_size, c_.hidden_size);
  }

  const ModelConfig& c_;
  const LoadOptions& options_;
  const kernels::Context& ctx_;
  const int64_t rows_, own_;
  const ForwardLimits limits_;
};

}  // namespace

int64_t deepseek_workspace_bytes(const ModelConfig& config, const LoadOptions& options, int num_threads) {
  device::ThreadPool pool(num_threads);  // kernels size their scratch per thread
  const kernels::Context ctx{options.backend, options.isa, &pool, nullptr};
  return Sizes(config, options, ctx).total();
}

GatherBytes deepseek_gather_bytes(const ModelConfig& config, const LoadOptions& options) {
  GatherBytes bytes;
  const int64_t size = options.attention_tp_size;
  if (size == 1) return bytes;
  const int64_t rows = options.limits.max_tokens, logit_rows = options.limits.max_logit_rows;
  const auto act = int64_t(size_of(kernels::Context{options.backend}.act_dtype()));
  const int64_t latent = config.q_lora_rank > 0 ? config.q_lora_rank : config.hidden_size;
  bytes.latents = parallel::largest_share(rows, int32_t(size)) * latent * act;
  bytes.heads = rows * (config.num_heads / size) * config.v_dim * act;
  bytes.chosen = logit_rows * config.hidden_size * int64_t(sizeof(float));
  bytes.logits = logit_rows * parallel::largest_share(config.vocab_size, int32_t(size)) * int64_t(sizeof(float));
  return bytes;
}

MemoryPlan plan_deepseek_memory(const ModelConfig& config, const LoadOptions& options) {
  const DeepseekBytes weights = deepseek_weight_bytes(config, options.backend);
  MemoryPlan plan;
  plan.weight_bytes = weights.shared + RopeValues::bytes(config, options.limits.max_context);
  plan.workspace_bytes = deepseek_workspace_bytes(config, options, options.num_threads);
  plan.workspace_bytes += deepseek_gather_bytes(config, options).total();
  if (is_cuda(options.backend)) plan.workspace_bytes += GpuStep::bytes(config, options);
  const parallel::ExchangeShape shape = exchange_shape(config, options);
  if (shape.top_k == 0) return plan;
  int64_t layers = 0;
  for (int32_t layer = 0; layer < config.num_layers; ++layer) layers += config.is_moe_layer(layer) ? 1 : 0;
  plan.expert_bytes = weights.expert * (layers * shape.slots_per_rank + options.experts.spare_slots);
  const bool alone = shape.num_ranks == 1 || options.loop_back;
  plan.exchange_bytes = !is_cuda(options.backend) ? parallel::exchange_bytes(shape)
                        : alone                   ? parallel::gpu_exchange_bytes(shape)
                                                  : parallel::peer_exchange_bytes(shape);
  return plan;
}

}  // namespace tandem::model
