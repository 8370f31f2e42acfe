#include "model/arch/deepseek.h"

#include <algorithm>
#include <array>

#include "kernels/norm.h"
#include "model/arch/batch_split.h"
#include "model/arch/deepseek_weights.h"
#include "model/arch/gpu_step.h"
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
        rope(config, options.limits.max_context, device_of(options.backend)) {}

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
        splitter_(options.limits.max_sequences, options.experts.two_batch_threshold),
        stream_(std::move(rank.stream)),
        workspace_(device_of(options.backend), size_t(deepseek_workspace_bytes(config_, options, rank.num_threads))),
        ctx_{options.backend, options.isa, &pool_, &workspace_, stream_.get(), options.launches} {
    CHECK(is_cuda(options.backend) == (stream_ != nullptr));
    if (stream_) gpu_ = std::make_unique<GpuStep>(config_, options, slots_.get(), *stream_);
    CHECK((slots_ == nullptr) == (exchange_ == nullptr));
    CHECK(exchange_ == nullptr || clock_ != nullptr);
  }

  const ModelConfig& config() const override { return config_; }
  uint64_t fingerprint() const override { return shared_->fingerprint; }
  const device::Stream* stream() const override { return stream_.get(); }
  ExpertSlots* expert_slots() override { return slots_.get(); }
  Status forward(const ForwardBatch& batch, kv::KvStorage& cache,
                 const std::function<void(int32_t)>& layer_done) override;

 private:
  // A run of the batch's rows that goes through the layers together: the whole batch, or one half of it.
  struct Part {
    Part(const ForwardBatch& of, kv::KvStorage& rows_in) : batch(of), cache(rows_in) {}

    const ForwardBatch& batch;
    kv::KvStorage& cache;
    const std::function<void(int32_t)>* layer_done = nullptr;  // of the part that writes the layer's last rows
    std::span<const kernels::SequenceSpan> sequences;          // first_row counts from the part's first
    int64_t first_row = 0, rows = 0;
    int32_t channel = 0;
    // Views of the step's memory, [rows, ...]; f32 but x.
    TensorView hidden;             // the residual stream
    TensorView x, x_f32;           // normalised input of the layer's MLP; one and the same where activations are f32
    TensorView ids, gate_weights;  // choices of experts, later of slots
    std::span<const float*> results;
    int32_t waits_for_layer = -1;  // whose expert results are under way; -1: none

    std::span<const int32_t> of_rows(std::span<const int32_t> all) const {
      return all.subspan(size_t(first_row), size_t(rows));
    }
  };
  // The memory of a step that lives as long as the part.
  struct StepMemory {
    TensorView hidden, x, x_f32, ids, gate_weights;
    const float** results = nullptr;
  };

  // Unclear memory of the step, gone when its scope ends.
  TensorView f32(int64_t rows, int64_t cols) { return take(DType::kF32, rows, cols); }
  TensorView act(int64_t rows, int64_t cols) { return take(ctx_.act_dtype(), rows, cols); }
  TensorView take(DType dtype, int64_t rows, int64_t cols) {
    return {workspace_.take(size_t(rows * cols) * size_of(dtype)), dtype, {rows, cols}};
  }

  void check(const ForwardBatch& batch, const kv::KvStorage& cache) const;
  StepMemory take_step_memory(int64_t rows);
  Part make_part(const ForwardBatch& batch, kv::KvStorage& cache, const StepMemory& memory,
                 const BatchPart& rows) const;
  void attention(int32_t layer, const Part& part);
  TensorView project(const AttentionWeights& w, int32_t layer, const Part& part);
  void dense_mlp(const kernels::ExpertWeights& w, int32_t width, TensorView x, TensorView hidden);
  void begin_mlp(int32_t layer, Part& part);
  Status run_experts(int32_t layer, const Part& part);
  Status finish_mlp(Part& part);
  void choose_slots(int32_t layer, const Part& part) const;
  Result<parallel::ReceivedRows> receive(int32_t channel);
  void logits(const ForwardBatch& batch, TensorView hidden_rows);

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
  BatchSplitter splitter_;
  const std::shared_ptr<const device::Stream> stream_;  // null on the CPU, as gpu_ is
  device::Workspace workspace_;
  const Context ctx_;
  std::unique_ptr<GpuStep> gpu_;
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
  CHECK(cache.layout().dtype == DType::kBF16 || cache.layout().dtype == DType::kF32);
  for (const kernels::SequenceSpan& sequence : batch.sequences) {
    CHECK(int64_t(sequence.prefix_len) + sequence.num_rows <= limits_.max_context);
  }
}

DeepseekModel::StepMemory DeepseekModel::take_step_memory(int64_t rows) {
  StepMemory memory;
  memory.hidden = f32(rows, config_.hidden_size);
  memory.x = act(rows, config_.hidden_size);
  if (slots_ == nullptr) return memory;
  memory.x_f32 = memory.x.dtype() == DType::kF32 ? memory.x : f32(rows, config_.hidden_size);
  memory.ids = take(DType::kI32, rows, config_.gate.top_k);
  memory.gate_weights = f32(rows, config_.gate.top_k);
  memory.results = workspace_.take_array<const float*>(size_t(rows * config_.gate.top_k));
  return memory;
}

DeepseekModel::Part DeepseekModel::make_part(const ForwardBatch& batch, kv::KvStorage& cache, const StepMemory& memory,
                                             const BatchPart& rows) const {
  const auto part_of = [&](const TensorView& all) {
    if (all.data() == nullptr) return TensorView();
    const int64_t width = all.dim(1);
    return TensorView(all.as<std::byte>() + rows.first_row * width * int64_t(size_of(all.dtype())), all.dtype(),
                      {rows.rows, width});
  };
  Part part{batch, cache};
  part.sequences = rows.sequences;
  part.first_row = rows.first_row;
  part.rows = rows.rows;
  part.hidden = part_of(memory.hidden);
  part.x = part_of(memory.x);
  part.x_f32 = part_of(memory.x_f32);
  part.ids = part_of(memory.ids);
  part.gate_weights = part_of(memory.gate_weights);
  const size_t top_k = size_t(config_.gate.top_k);
  if (memory.results) part.results = {memory.results + size_t(rows.first_row) * top_k, size_t(rows.rows) * top_k};
  return part;
}

// Per layer and half: results of the layer before come in, attention, gate, rows go out; then each half's experts. With
// two halves the rows and results of one travel while the other computes.
Status DeepseekModel::forward(const ForwardBatch& given, kv::KvStorage& cache,
                              const std::function<void(int32_t)>& layer_done) {
  check(given, cache);
  workspace_.reset();
  std::array<BatchPart, 2> halves;
  const std::span<const BatchPart> split = splitter_.split(given);
  std::copy(split.begin(), split.end(), halves.begin());
  const ForwardBatch batch =
      gpu_ ? gpu_->upload(given, cache.layout().block_tokens, std::span(halves).first(split.size())) : given;
  const StepMemory memory = take_step_memory(int64_t(batch.token_ids.size()));
  const TensorView table(weights_.embedding.data(), weights_.embedding_dtype,
                         {config_.vocab_size, config_.hidden_size});
  if (!batch.token_ids.empty()) kernels::embed(ctx_, batch.token_ids, table, memory.hidden);
  std::array<Part, 2> parts = {make_part(batch, cache, memory, halves[0]),
                               make_part(batch, cache, memory, halves[split.size() - 1])};
  const std::span<Part> running(parts.data(), split.size());
  parts[1].channel = 1;
  if (layer_done) running.back().layer_done = &layer_done;
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) {
    for (Part& part : running) {
      RETURN_IF_ERROR(finish_mlp(part));
      if (part.rows > 0) attention(layer, part);
      begin_mlp(layer, part);
    }
    for (Part& part : running) {
      if (part.waits_for_layer == layer) RETURN_IF_ERROR(run_experts(layer, part));
    }
  }
  for (Part& part : running) RETURN_IF_ERROR(finish_mlp(part));
  if (!batch.logit_rows.empty()) logits(batch, memory.hidden);
  if (gpu_ && batch.expert_counts) gpu_->add_counts(batch.expert_counts);
  return Ok{};
}

// From the residual stream to rotated queries; on the way the latents go into the cache.
TensorView DeepseekModel::project(const AttentionWeights& w, int32_t layer, const Part& part) {
  const int64_t rows = part.rows, q_cols = int64_t(shape_.num_heads) * (shape_.nope_dim + shape_.rope_dim);
  const TensorView q_out = act(rows, q_cols);
  const WorkspaceScope scope(workspace_);
  const TensorView x = act(rows, config_.hidden_size);
  kernels::rms_norm(ctx_, part.hidden, config_.hidden_size, w.input_norm.view(), config_.rms_norm_eps, x, {});
  const int64_t q_lora = config_.q_lora_rank, width = q_lora + shape_.row_width();
  const TensorView down = f32(rows, width);
  kernels::linear(ctx_, x, w.down, down);

  const kv::KvLayout& layout = part.cache.layout();
  const kernels::PagedCache cache{part.cache.layer_base(layer), layout.dtype, layout.block_tokens, layout.num_blocks};
  const TensorView kv_a(down.as<float>() + q_lora, DType::kF32, {rows, shape_.row_width()});
  kernels::mla_write_cache(ctx_, shape_, kv_a, width, w.kv_a_norm.view(), config_.rms_norm_eps,
                           part.of_rows(part.batch.positions), part.of_rows(part.batch.slots), shared_->rope.table(),
                           cache);
  if (part.layer_done) {
    if (stream_) stream_->synchronize();
    (*part.layer_done)(layer);
  }

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
  kernels::mla_rope_q(ctx_, shape_, q_in, part.of_rows(part.batch.positions), shared_->rope.table(), rotated);
  return rotated;
}

void DeepseekModel::attention(int32_t layer, const Part& part) {
  const AttentionWeights& w = weights_.attention[size_t(layer)];
  const WorkspaceScope scope(workspace_);
  const TensorView q = project(w, layer, part);
  const TensorView out = act(part.rows, int64_t(shape_.num_heads) * shape_.v_dim);
  const kv::KvLayout& layout = part.cache.layout();
  const kernels::PagedCache cache{part.cache.layer_base(layer), layout.dtype, layout.block_tokens, layout.num_blocks};
  if (part.batch.phase == Phase::kPrefill) {
    kernels::mla_prefill(ctx_, shape_, q, w.kv_up, cache, part.sequences, out);
  } else {
    kernels::mla_decode(ctx_, shape_, q, w.kv_up, cache, part.sequences, out);
  }
  kernels::linear_add(ctx_, out, w.output, part.hidden);
}

void DeepseekModel::dense_mlp(const kernels::ExpertWeights& w, int32_t width, TensorView x, TensorView hidden) {
  const WorkspaceScope scope(workspace_);
  const TensorView gate_up = f32(x.dim(0), 2 * int64_t(width));
  const TensorView product = act(x.dim(0), width);
  kernels::linear(ctx_, x, w.gate_up, gate_up);
  kernels::swiglu(ctx_, gate_up, product);
  kernels::linear_add(ctx_, product, w.down, hidden);
}

// Up to where rows leave for their experts; a dense layer is done with it.
void DeepseekModel::begin_mlp(int32_t layer, Part& part) {
  const MlpWeights& w = weights_.mlp[size_t(layer)];
  const bool routed = slots_ != nullptr && slots_->has_experts(layer);
  if (part.rows == 0 && !routed) return;
  const bool wants_f32 = routed && part.x_f32.data() != part.x.data();
  if (part.rows > 0) {
    kernels::rms_norm(ctx_, part.hidden, config_.hidden_size, w.norm.view(), config_.rms_norm_eps, part.x,
                      wants_f32 ? part.x_f32 : TensorView());
  }
  if (!routed) return dense_mlp(w.always, w.always_width, part.x, part.hidden);
  if (part.rows > 0) {
    const WorkspaceScope scope(workspace_);
    const TensorView bias = w.bias.rows > 0 ? w.bias.view() : TensorView();
    kernels::gate(ctx_, config_.gate, part.x_f32, w.router.view(), bias, part.ids, part.gate_weights);
  }
  choose_slots(layer, part);
  exchange_->post_dispatch(part.channel, {part.batch.step, layer}, part.batch.exchange_mode, part.x, part.ids);
  part.waits_for_layer = layer;
}

// The shared experts while rows travel, then this rank's slots on the rows of all ranks.
Status DeepseekModel::run_experts(int32_t layer, const Part& part) {
  const MlpWeights& w = weights_.mlp[size_t(layer)];
  if (w.always_width > 0 && part.rows > 0) dense_mlp(w.always, w.always_width, part.x, part.hidden);
  ASSIGN_OR_RETURN(const parallel::ReceivedRows received, receive(part.channel));
  if (received.results.dim(0) > 0) {
    const WorkspaceScope scope(workspace_);
    kernels::grouped_mlp(ctx_, received.rows, received.sort, slots_->weights(layer), config_.moe_intermediate_size,
                         received.results);
  }
  exchange_->post_results(part.channel);
  return Ok{};
}

// Adds the results of the layer that the part waits for, if any.
Status DeepseekModel::finish_mlp(Part& part) {
  if (part.waits_for_layer < 0) return Ok{};
  part.waits_for_layer = -1;
  for (;;) {
    ASSIGN_OR_RETURN(const bool complete, exchange_->poll_results(part.channel, clock_->now(), part.results));
    if (complete) break;
    exchange_->wait(part.channel, kExchangeLook);
  }
  if (part.rows > 0) kernels::combine(ctx_, part.results, part.gate_weights, part.hidden);
  return Ok{};
}

// Counts logical experts, then turns them into slots in place.
void DeepseekModel::choose_slots(int32_t layer, const Part& part) const {
  const uint64_t seed = part.batch.step * uint64_t(config_.num_layers) + uint64_t(layer);
  if (gpu_) {
    kernels::SlotChoice choice = gpu_->choice(layer);
    choice.seed = seed;
    choice.first_token = part.first_row;
    choice.fakes_routing = fakes_routing_;
    return kernels::choose_slots(ctx_, choice, part.ids, part.batch.expert_counts ? gpu_->counts(layer) : nullptr);
  }
  const experts::LayerDispatch& dispatch = slots_->layer(layer).dispatch;
  const int64_t top_k = config_.gate.top_k;
  int32_t* id = part.ids.as<int32_t>();
  int32_t* counts = part.batch.expert_counts;
  if (counts) counts += int64_t(layer) * config_.num_routed_experts;
  for (int64_t token = part.first_row; token < part.first_row + part.rows; ++token) {
    // A benchmark aid: any top_k different experts, evenly.
    const uint32_t first = experts::draw_of(seed, uint64_t(token), 0);
    for (int64_t k = 0; k < top_k; ++k, ++id) {
      if (fakes_routing_) *id = int32_t((first + k * config_.num_routed_experts / top_k) % config_.num_routed_experts);
      if (counts) ++counts[*id];
      *id = dispatch.choose(*id, experts::draw_of(seed, uint64_t(token), uint32_t(k)));
    }
  }
}

Result<parallel::ReceivedRows> DeepseekModel::receive(int32_t channel) {
  for (;;) {
    ASSIGN_OR_RETURN(const std::optional<parallel::ReceivedRows> received,
                     exchange_->poll_received(channel, clock_->now()));
    if (received) return *received;
    exchange_->wait(channel, kExchangeLook);
  }
}

void DeepseekModel::logits(const ForwardBatch& batch, TensorView hidden_rows) {
  const WorkspaceScope scope(workspace_);
  const int64_t rows = int64_t(batch.logit_rows.size()), hidden = config_.hidden_size;
  const TensorView chosen = f32(rows, hidden);
  kernels::gather_rows(ctx_, hidden_rows, batch.logit_rows, chosen);
  const TensorView x = act(rows, hidden);
  kernels::rms_norm(ctx_, chosen, hidden, weights_.final_norm.view(), config_.rms_norm_eps, x, {});
  kernels::linear(ctx_, x, weights_.head, TensorView(batch.logits, DType::kF32, {rows, config_.vocab_size}));
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
