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

// Longest sleep between two looks at an exchange; what comes wakes the thread at once.
constexpr Duration kExchangeLook = std::chrono::milliseconds(20);

// What the ranks of a process share.
struct DeepseekShared {
  DeepseekShared(const ModelConfig& config, const WeightSource& source, const LoadOptions& options,
                 std::unique_ptr<DeepseekWeights> packed)
      : config(config),
        fingerprint(source.fingerprint(hash_config(config))),
        weights(std::move(packed)),
        rope(config, options.limits.max_context) {}

  const ModelConfig config;
  const uint64_t fingerprint;
  const std::unique_ptr<DeepseekWeights> weights;
  const RopeValues rope;
};

class DeepseekModel final : public Model {
 public:
  DeepseekModel(std::shared_ptr<const DeepseekShared> shared, const LoadOptions& options, RankOptions rank,
                std::unique_ptr<ExpertSlots> slots)
      : shared_(std::move(shared)),
        config_(shared_->config),
        limits_(options.limits),
        shape_(config_.mla()),
        pool_(rank.num_threads),
        weights_(*shared_->weights),
        slots_(std::move(slots)),
        exchange_(std::move(rank.exchange)),
        clock_(rank.clock),
        fakes_routing_(options.experts.dispatch == experts::DispatchAlgorithm::kFake),
        workspace_(device::Device::kCpu, size_t(deepseek_workspace_bytes(config_, options, rank.num_threads))),
        ctx_{options.backend, options.isa, &pool_, &workspace_} {
    CHECK((slots_ == nullptr) == (exchange_ == nullptr));
    CHECK(exchange_ == nullptr || clock_ != nullptr);
  }

  const ModelConfig& config() const override { return config_; }
  uint64_t fingerprint() const override { return shared_->fingerprint; }
  ExpertSlots* expert_slots() override { return slots_.get(); }
  Status forward(const ForwardBatch& batch, kv::KvStorage& cache,
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
  Status mlp(int32_t layer, const Step& step);
  Status expert_mlp(int32_t layer, const Step& step, TensorView x, TensorView x_f32);
  void choose_slots(int32_t layer, const Step& step, TensorView ids) const;
  Result<parallel::ReceivedRows> receive();
  Status receive_results(std::span<const float*> rows);
  void logits(const Step& step);

  const std::shared_ptr<const DeepseekShared> shared_;
  const ModelConfig& config_;  // shared_'s, as weights_ are
  const ForwardLimits limits_;
  const kernels::MlaShape shape_;
  device::ThreadPool pool_;
  const DeepseekWeights& weights_;
  const std::unique_ptr<ExpertSlots> slots_;
  const std::unique_ptr<parallel::ExpertExchange> exchange_;
  const Clock* const clock_;
  const bool fakes_routing_;
  device::Workspace workspace_;
  const Context ctx_;
};

void DeepseekModel::check(const ForwardBatch& batch, const kv::KvStorage& cache) const {
  CHECK(int64_t(batch.token_ids.size()) <= limits_.max_tokens);
  CHECK(batch.positions.size() == batch.token_ids.size());
  CHECK(batch.slots.size() == batch.token_ids.size());
  CHECK(int64_t(batch.sequences.size()) <= limits_.max_sequences);
  CHECK(int64_t(batch.logit_rows.size()) <= limits_.max_logit_rows);
  CHECK(batch.logit_rows.empty() || batch.logits);
  CHECK(cache.layout().num_layers == config_.num_layers);
  CHECK(cache.layout().row_width == shape_.row_width());
  CHECK(cache.layout().dtype == ctx_.act_dtype());
  for (const kernels::SequenceSpan& sequence : batch.sequences) {
    CHECK(int64_t(sequence.prefix_len) + sequence.num_rows <= limits_.max_context);
  }
}

Status DeepseekModel::forward(const ForwardBatch& batch, kv::KvStorage& cache,
                              const std::function<void(int32_t)>& layer_done) {
  check(batch, cache);
  workspace_.reset();
  const int64_t rows = int64_t(batch.token_ids.size());
  const Step step{batch, cache, layer_done, rows, f32(rows, config_.hidden_size)};
  const TensorView table(weights_.embedding.data(), weights_.embedding_dtype,
                         {config_.vocab_size, config_.hidden_size});
  if (rows > 0) kernels::embed(ctx_, batch.token_ids, table, step.hidden);
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) {
    if (rows > 0) attention(layer, step);
    RETURN_IF_ERROR(mlp(layer, step));
  }
  if (!batch.logit_rows.empty()) logits(step);
  return Ok{};
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
                           step.batch.slots, shared_->rope.table(), cache);
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
  kernels::mla_rope_q(ctx_, shape_, q_in, step.batch.positions, shared_->rope.table(), rotated);
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

Status DeepseekModel::mlp(int32_t layer, const Step& step) {
  const MlpWeights& w = weights_.mlp[size_t(layer)];
  const WorkspaceScope scope(workspace_);
  const bool routed = slots_ != nullptr && slots_->has_experts(layer);
  if (step.rows == 0 && !routed) return Ok{};
  const TensorView x = act(step.rows, config_.hidden_size);
  const TensorView x_f32 = routed ? f32(step.rows, config_.hidden_size) : TensorView();
  if (step.rows > 0) {
    kernels::rms_norm(ctx_, step.hidden, config_.hidden_size, w.norm.view(), config_.rms_norm_eps, x, x_f32);
  }
  if (routed) return expert_mlp(layer, step, x, x_f32);
  dense_mlp(w.always, w.always_width, x, step.hidden);
  return Ok{};
}

// gate -> slots -> rows travel to their experts' ranks, the shared experts run meanwhile -> experts -> results travel
// back -> combine.
Status DeepseekModel::expert_mlp(int32_t layer, const Step& step, TensorView x, TensorView x_f32) {
  const MlpWeights& w = weights_.mlp[size_t(layer)];
  const int64_t top_k = config_.gate.top_k;
  const TensorView ids = take(DType::kI32, step.rows, top_k);
  const TensorView gate_weights = f32(step.rows, top_k);
  if (step.rows > 0) {
    const WorkspaceScope scope(workspace_);
    const TensorView bias = w.bias.rows > 0 ? w.bias.view() : TensorView();
    kernels::gate(ctx_, config_.gate, x_f32, w.router.view(), bias, ids, gate_weights);
  }
  choose_slots(layer, step, ids);
  exchange_->post_dispatch(0, {step.batch.step, layer}, step.batch.exchange_mode, x, ids);
  if (w.always_width > 0 && step.rows > 0) dense_mlp(w.always, w.always_width, x, step.hidden);

  const std::span<const float*> rows(workspace_.take_array<const float*>(size_t(step.rows * top_k)),
                                     size_t(step.rows * top_k));
  ASSIGN_OR_RETURN(const parallel::ReceivedRows received, receive());
  if (received.results.dim(0) > 0) {
    const WorkspaceScope scope(workspace_);
    kernels::grouped_mlp(ctx_, received.rows, received.sort, slots_->weights(layer), config_.moe_intermediate_size,
                         received.results);
  }
  exchange_->post_results(0);
  RETURN_IF_ERROR(receive_results(rows));
  if (step.rows > 0) kernels::combine(ctx_, rows, gate_weights, step.hidden);
  return Ok{};
}

// Counts logical experts, then turns them into slots in place.
void DeepseekModel::choose_slots(int32_t layer, const Step& step, TensorView ids) const {
  const experts::LayerDispatch& dispatch = slots_->layer(layer).dispatch;
  const int64_t top_k = config_.gate.top_k;
  int32_t* id = ids.as<int32_t>();
  int32_t* counts = step.batch.expert_counts;
  if (counts) counts += int64_t(layer) * config_.num_routed_experts;
  const uint64_t seed = step.batch.step * uint64_t(config_.num_layers) + uint64_t(layer);
  for (int64_t token = 0; token < step.rows; ++token) {
    // A benchmark aid: any top_k different experts, evenly.
    const uint32_t first = experts::draw_of(seed, uint64_t(token), 0);
    for (int64_t k = 0; k < top_k; ++k, ++id) {
      if (fakes_routing_) *id = int32_t((first + k * config_.num_routed_experts / top_k) % config_.num_routed_experts);
      if (counts) ++counts[*id];
      *id = dispatch.choose(*id, experts::draw_of(seed, uint64_t(token), uint32_t(k)));
    }
  }
}

Result<parallel::ReceivedRows> DeepseekModel::receive() {
  for (;;) {
    ASSIGN_OR_RETURN(const std::optional<parallel::ReceivedRows> received, exchange_->poll_received(0, clock_->now()));
    if (received) return *received;
    exchange_->wait(0, kExchangeLook);
  }
}

Status DeepseekModel::receive_results(std::span<const float*> rows) {
  for (;;) {
    ASSIGN_OR_RETURN(const bool complete, exchange_->poll_results(0, clock_->now(), rows));
    if (complete) return Ok{};
    exchange_->wait(0, kExchangeLook);
  }
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

Result<std::vector<std::unique_ptr<Model>>> build_deepseek(const ModelConfig& config, const WeightSource& source,
                                                           const LoadOptions& options, std::vector<RankOptions> ranks) {
  CHECK(!ranks.empty());
  std::vector<RankExperts> experts;
  for (const RankOptions& rank : ranks) experts.push_back({rank.rank, nullptr});
  ASSIGN_OR_RETURN(std::unique_ptr<DeepseekWeights> weights, pack_deepseek(config, source, options, experts));
  const auto shared = std::make_shared<const DeepseekShared>(config, source, options, std::move(weights));
  std::vector<std::unique_ptr<Model>> models;
  for (size_t i = 0; i < ranks.size(); ++i) {
    models.push_back(
        std::make_unique<DeepseekModel>(shared, options, std::move(ranks[i]), std::move(experts[i].slots)));
  }
  return models;
}

}  // namespace tandem::model
