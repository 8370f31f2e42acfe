#include "model/arch/deepseek.h"

#include <cstring>

#include "kernels/norm.h"
#include "model/arch/deepseek_weights.h"
#include "model/weights/rope_table.h"

namespace tandem::model {

namespace {

using device::DType;
using device::TensorView;
using device::WorkspaceScope;
using kernels::Context;

class DeepseekModel final : public Model {
 public:
  DeepseekModel(const ModelConfig& config, const WeightSource& source, const LoadOptions& options)
      : config_(config),
        limits_(options.limits),
        shape_(config.mla()),
        fingerprint_(source.fingerprint(hash_config(config))),
        pool_(options.num_threads),
        weights_(pack_deepseek(config, source, options, pool_)),
        rope_(config, options.limits.max_context),
        workspace_(device::Device::kCpu, size_t(deepseek_workspace_bytes(config, options))),
        ctx_{options.backend, options.isa, &pool_, &workspace_} {}

  const ModelConfig& config() const override { return config_; }
  uint64_t fingerprint() const override { return fingerprint_; }
  void forward(const ForwardBatch& batch, kv::KvStorage& cache,
               const std::function<void(int32_t)>& layer_done) override;

 private:
  struct Step {
    const ForwardBatch& batch;
    kv::KvStorage& cache;
    const std::function<void(int32_t)>& layer_done;
    int64_t rows;
    TensorView hidden;  // [T, H] f32, the residual stream
  };

  // Unclear memory of the step, gone when its scope ends.
  TensorView f32(int64_t rows, int64_t cols) { return take(DType::kF32, rows, cols); }
  TensorView act(int64_t rows, int64_t cols) { return take(ctx_.act_dtype(), rows, cols); }
  TensorView take(DType dtype, int64_t rows, int64_t cols) {
    return {workspace_.take(size_t(rows * cols) * size_of(dtype)), dtype, {rows, cols}};
  }

  void check(const ForwardBatch& batch, const kv::KvStorage& cache) const;
  void attention(int32_t layer, const Step& step);
  TensorView project(const AttentionWeights& w, int32_t layer, const Step& step);
  void dense_mlp(const kernels::ExpertWeights& w, int32_t width, TensorView x, TensorView hidden);
  void mlp(int32_t layer, const Step& step);
  void routed_experts(int32_t layer, const MlpWeights& w, const Step& step, TensorView x, TensorView x_f32);
  void logits(const Step& step);

  const ModelConfig config_;
  const ForwardLimits limits_;
  const kernels::MlaShape shape_;
  const uint64_t fingerprint_;
  device::ThreadPool pool_;
  const DeepseekWeights weights_;
  const RopeValues rope_;
  device::Workspace workspace_;
  const Context ctx_;
};

void DeepseekModel::check(const ForwardBatch& batch, const kv::KvStorage& cache) const {
  CHECK(!batch.token_ids.empty());
  CHECK(int64_t(batch.token_ids.size()) <= limits_.max_tokens);
  CHECK(batch.positions.size() == batch.token_ids.size());
  CHECK(batch.slots.size() == batch.token_ids.size());
  CHECK(int64_t(batch.sequences.size()) <= limits_.max_sequences);
  CHECK(int64_t(batch.logit_rows.size()) <= limits_.max_logit_rows);
  CHECK(batch.logit_rows.empty() || batch.logits);
  CHECK(cache.layout().num_layers == config_.num_layers);
  CHECK(cache.layout().row_width == shape_.row_width());
  CHECK(cache.layout().dtype == DType::kBF16 || cache.layout().dtype == DType::kF32);
  for (const kernels::SequenceSpan& sequence : batch.sequences) {
    CHECK(int64_t(sequence.prefix_len) + sequence.num_rows <= limits_.max_context);
  }
}

void DeepseekModel::forward(const ForwardBatch& batch, kv::KvStorage& cache,
                            const std::function<void(int32_t)>& layer_done) {
  check(batch, cache);
  workspace_.reset();
  const int64_t rows = int64_t(batch.token_ids.size());
  const Step step{batch, cache, layer_done, rows, f32(rows, config_.hidden_size)};
  const TensorView table(weights_.embedding.data(), weights_.embedding_dtype,
                         {config_.vocab_size, config_.hidden_size});
  kernels::embed(ctx_, batch.token_ids, table, step.hidden);
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) {
    attention(layer, step);
    mlp(layer, step);
  }
  if (!batch.logit_rows.empty()) logits(step);
}

// From the residual stream to rotated queries; on the way the latents go into the cache.
TensorView DeepseekModel::project(const AttentionWeights& w, int32_t layer, const Step& step) {
  const int64_t rows = step.rows, q_cols = int64_t(shape_.num_heads) * (shape_.nope_dim + shape_.rope_dim);
  const TensorView q_out = act(rows, q_cols);
  const WorkspaceScope scope(workspace_);
  const TensorView x = act(rows, config_.hidden_size);
  kernels::rms_norm(ctx_, step.hidden, config_.hidden_size, w.input_norm.view(), config_.rms_norm_eps, x, {});
  const int64_t q_lora = config_.q_lora_rank, width = q_lora + shape_.row_width();
  const TensorView down = f32(rows, width);
  kernels::linear(ctx_, x, w.down, down);

  const kv::KvLayout& layout = step.cache.layout();
  const kernels::PagedCache cache{step.cache.layer_base(layer), layout.dtype, layout.block_tokens, layout.num_blocks};
  const TensorView kv_a(down.as<float>() + q_lora, DType::kF32, {rows, shape_.row_width()});
  kernels::mla_write_cache(ctx_, shape_, kv_a, width, w.kv_a_norm.view(), config_.rms_norm_eps, step.batch.positions,
                           step.batch.slots, rope_.table(), cache);
  if (step.layer_done) step.layer_done(layer);

  const TensorView q = f32(rows, q_cols);
  if (q_lora > 0) {
    const TensorView latent = act(rows, q_lora);
    const TensorView q_a(down.data(), DType::kF32, {rows, q_lora});
    kernels::rms_norm(ctx_, q_a, width, w.q_a_norm.view(), config_.rms_norm_eps, latent, {});
    kernels::linear(ctx_, latent, w.q_up, q);
  } else {
    kernels::linear(ctx_, x, w.q_up, q);
  }
  const int64_t heads = shape_.num_heads, head_dim = shape_.nope_dim + shape_.rope_dim;
  const TensorView q_in(q.data(), DType::kF32, {rows, heads, head_dim});
  const TensorView rotated(q_out.data(), q_out.dtype(), {rows, heads, head_dim});
  kernels::mla_rope_q(ctx_, shape_, q_in, step.batch.positions, rope_.table(), rotated);
  return rotated;
}

void DeepseekModel::attention(int32_t layer, const Step& step) {
  const AttentionWeights& w = weights_.attention[size_t(layer)];
  const WorkspaceScope scope(workspace_);
  const TensorView q = project(w, layer, step);
  const TensorView out = act(step.rows, int64_t(shape_.num_heads) * shape_.v_dim);
  const kv::KvLayout& layout = step.cache.layout();
  const kernels::PagedCache cache{step.cache.layer_base(layer), layout.dtype, layout.block_tokens, layout.num_blocks};
  if (step.batch.phase == Phase::kPrefill) {
    kernels::mla_prefill(ctx_, shape_, q, w.kv_up, cache, step.batch.sequences, out);
  } else {
    kernels::mla_decode(ctx_, shape_, q, w.kv_up, cache, step.batch.sequences, out);
  }
  kernels::linear_add(ctx_, out, w.output, step.hidden);
}

void DeepseekModel::dense_mlp(const kernels::ExpertWeights& w, int32_t width, TensorView x, TensorView hidden) {
  const WorkspaceScope scope(workspace_);
  const TensorView gate_up = f32(x.dim(0), 2 * int64_t(width));
  const TensorView product = act(x.dim(0), width);
  kernels::linear(ctx_, x, w.gate_up, gate_up);
  kernels::swiglu(ctx_, gate_up, product);
  kernels::linear_add(ctx_, product, w.down, hidden);
}

void DeepseekModel::mlp(int32_t layer, const Step& step) {
  const MlpWeights& w = weights_.mlp[size_t(layer)];
  const WorkspaceScope scope(workspace_);
  const bool routed = !w.experts.empty();
  const TensorView x = act(step.rows, config_.hidden_size);
  const TensorView x_f32 = routed ? f32(step.rows, config_.hidden_size) : TensorView();
  kernels::rms_norm(ctx_, step.hidden, config_.hidden_size, w.norm.view(), config_.rms_norm_eps, x, x_f32);
  if (routed) routed_experts(layer, w, step, x, x_f32);
  if (w.always_width > 0) dense_mlp(w.always, w.always_width, x, step.hidden);
}

// gate -> (here rows travel between ranks) -> experts -> (and back) -> combine.
void DeepseekModel::routed_experts(int32_t layer, const MlpWeights& w, const Step& step, TensorView x,
                                   TensorView x_f32) {
  const WorkspaceScope scope(workspace_);
  const int64_t top_k = config_.gate.top_k;
  const TensorView ids = take(DType::kI32, step.rows, top_k);
  const TensorView gate_weights = f32(step.rows, top_k);
  const TensorView bias = w.bias.rows > 0 ? w.bias.view() : TensorView();
  kernels::gate(ctx_, config_.gate, x_f32, w.router.view(), bias, ids, gate_weights);
  if (step.batch.expert_counts) {
    int32_t* counts = step.batch.expert_counts + int64_t(layer) * config_.num_routed_experts;
    for (int64_t i = 0; i < step.rows * top_k; ++i) ++counts[ids.as<int32_t>()[i]];
  }
  const kernels::SlotSort sort = kernels::sort_by_slot(ctx_, ids, config_.num_routed_experts);
  const TensorView y = f32(step.rows * top_k, config_.hidden_size);
  kernels::grouped_mlp(ctx_, x, sort, w.slots, config_.moe_intermediate_size, y);
  kernels::combine(ctx_, y, sort, gate_weights, step.hidden);
}

void DeepseekModel::logits(const Step& step) {
  const WorkspaceScope scope(workspace_);
  const int64_t rows = int64_t(step.batch.logit_rows.size()), hidden = config_.hidden_size;
  const TensorView chosen = f32(rows, hidden);
  for (int64_t i = 0; i < rows; ++i) {
    const int32_t row = step.batch.logit_rows[size_t(i)];
    CHECK(row >= 0);
    CHECK(row < step.rows);
    std::memcpy(chosen.as<float>() + i * hidden, step.hidden.as<float>() + row * hidden,
                size_t(hidden) * sizeof(float));
  }
  const TensorView x = act(rows, hidden);
  kernels::rms_norm(ctx_, chosen, hidden, weights_.final_norm.view(), config_.rms_norm_eps, x, {});
  kernels::linear(ctx_, x, weights_.head, TensorView(step.batch.logits, DType::kF32, {rows, config_.vocab_size}));
}

}  // namespace

std::unique_ptr<Model> build_deepseek(const ModelConfig& config, const WeightSource& weights,
                                      const LoadOptions& options) {
  return std::make_unique<DeepseekModel>(config, weights, options);
}

}  // namespace tandem::model
