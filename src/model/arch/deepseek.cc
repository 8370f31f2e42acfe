#include "model/arch/deepseek.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/norm.h"
#include "model/arch/batch_split.h"
#include "model/arch/deepseek_weights.h"
#include "model/arch/gpu_step.h"
#include "model/arch/part_spans.h"
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

kernels::MlaShape shape_of_rank(const ModelConfig& config, const GroupGather& group) {
  kernels::MlaShape shape = config.mla();
  shape.num_heads /= group.size();
  return shape;
}

class DeepseekModel final : public Model {
 public:
  DeepseekModel(std::shared_ptr<const DeepseekShared> shared, const LoadOptions& options, RankOptions rank,
                std::unique_ptr<ExpertSlots> slots)
      : shared_(std::move(shared)),
        config_(shared_->config),
        limits_(options.limits),
        pool_(rank.num_threads),
        weights_(*shared_->weights),
        slots_(std::move(slots)),
        exchange_(std::move(rank.exchange)),
        clock_(rank.clock),
        gather_(std::move(rank.attention), deepseek_gather_bytes(config_, options), clock_, exchange_.get()),
        shape_(shape_of_rank(config_, gather_)),
        fakes_routing_(options.experts.dispatch == experts::DispatchAlgorithm::kFake),
        splitter_(options.limits.max_sequences, options.experts.two_batch_threshold),
        stream_(std::move(rank.stream)),
        workspace_(device_of(options.backend), size_t(deepseek_workspace_bytes(config_, options, rank.num_threads))),
        ctx_{options.backend, options.isa, &pool_, &workspace_, rank.spans, stream_.get(), options.launches} {
    CHECK(is_cuda(options.backend) == (stream_ != nullptr));
    CHECK(stream_ == nullptr || gather_.is_alone());
    if (stream_) gpu_ = std::make_unique<GpuStep>(config_, options, slots_.get(), *stream_);
    CHECK((slots_ == nullptr) == (exchange_ == nullptr));
    CHECK(exchange_ == nullptr || clock_ != nullptr);
    CHECK(gather_.size() == options.attention_tp_size);
  }

  const ModelConfig& config() const override { return config_; }
  uint64_t fingerprint() const override { return shared_->fingerprint; }
  const device::Stream* stream() const override { return stream_.get(); }
  ExpertSlots* expert_slots() override { return slots_.get(); }
  Status forward(const ForwardBatch& batch, kv::KvStorage& cache,
                 const std::function<void(int32_t)>& layer_done) override {
    Status done = run(batch, cache, layer_done);
    if (!done) gather_.give_up();
    return done;
  }

 private:
  // A run of the batch's rows that goes through the layers together: the whole batch, or one half of it. Of its rows
  // this rank works on its share; only attention, on this rank's heads, is over all of them.
  struct Part {
    Part(const ForwardBatch& of, kv::KvStorage& rows_in) : batch(of), cache(rows_in) {}

    const ForwardBatch& batch;
    kv::KvStorage& cache;
    const std::function<void(int32_t)>* layer_done = nullptr;  // of the part that writes the layer's last rows
    BatchPart all;
    int64_t first_row = 0, rows = 0;  // this rank's among them, counted in the batch
    int32_t channel = 0;
    // Views of the step's memory, [rows, ...]; f32 but x.
    TensorView hidden;             // the residual stream
    TensorView x, x_f32;           // normalised input of the layer's MLP; one and the same where activations are f32
    TensorView ids, gate_weights;  // choices of experts, later of slots
    std::span<const float*> results;
    int32_t waits_for_layer = -1;  // whose expert results are under way; -1: none
    PartSpans spans;

    std::span<const int32_t> of_rows(std::span<const int32_t> values) const {
      return values.subspan(size_t(first_row), size_t(rows));
    }
    std::span<const int32_t> of_all_rows(std::span<const int32_t> values) const {
      return values.subspan(size_t(all.first_row), size_t(all.rows));
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
  Status run(const ForwardBatch& batch, kv::KvStorage& cache, const std::function<void(int32_t)>& layer_done);
  parallel::RowShare own_rows(const BatchPart& part) const {
    return parallel::share_of(part.rows, gather_.size(), gather_.index());
  }
  // first: where the part's rows begin in the memory.
  Part make_part(const ForwardBatch& batch, kv::KvStorage& cache, const StepMemory& memory, const BatchPart& all,
                 int64_t first) const;
  Status attention(int32_t layer, const Part& part);
  Result<TensorView> project(int32_t layer, const Part& part);
  kernels::PagedCache cache_of(int32_t layer, const Part& part) const {
    const kv::KvLayout& layout = part.cache.layout();
    return {part.cache.layer_base(layer), layout.dtype, layout.block_tokens, layout.num_blocks};
  }
  Result<TensorView> query_inputs(int32_t layer, const Part& part);
  void dense_mlp(const kernels::ExpertWeights& w, int32_t width, TensorView x, TensorView hidden);
  void begin_mlp(int32_t layer, Part& part);
  Status run_experts(int32_t layer, Part& part);
  Status finish_mlp(Part& part);
  void choose_slots(int32_t layer, const Part& part) const;
  Result<parallel::ReceivedRows> receive(Part& part);
  Status logits(const ForwardBatch& batch, std::span<const Part> parts);
  Status choose_rows(const ForwardBatch& batch, std::span<const Part> parts, TensorView chosen);

  const std::shared_ptr<const DeepseekShared> shared_;
  const ModelConfig& config_;  // shared_'s, as weights_ are
  const ForwardLimits limits_;
  device::ThreadPool pool_;
  const DeepseekWeights& weights_;
  const std::unique_ptr<ExpertSlots> slots_;
  const std::unique_ptr<parallel::ExpertExchange> exchange_;
  const Clock* const clock_;
  GroupGather gather_;
  const kernels::MlaShape shape_;  // with this rank's heads
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
  CHECK(batch.logit_rows.empty() || batch.logits || !gather_.is_alone());
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
                                             const BatchPart& all, int64_t first) const {
  const parallel::RowShare own = own_rows(all);
  const auto part_of = [&](const TensorView& view) {
    if (view.data() == nullptr) return TensorView();
    const int64_t width = view.dim(1);
    return TensorView(view.as<std::byte>() + first * width * int64_t(size_of(view.dtype())), view.dtype(),
                      {own.count(), width});
  };
  Part part{batch, cache};
  part.all = all;
  part.first_row = all.first_row + own.begin;
  part.rows = own.count();
  part.hidden = part_of(memory.hidden);
  part.x = part_of(memory.x);
  part.x_f32 = part_of(memory.x_f32);
  part.ids = part_of(memory.ids);
  part.gate_weights = part_of(memory.gate_weights);
  const size_t top_k = size_t(config_.gate.top_k);
  if (memory.results) part.results = {memory.results + size_t(first) * top_k, size_t(part.rows) * top_k};
  return part;
}

// Per layer and half: results of the layer before come in, attention, gate, rows go out; then each half's experts. With
// two halves the rows and results of one travel while the other computes.
Status DeepseekModel::run(const ForwardBatch& given, kv::KvStorage& cache,
                          const std::function<void(int32_t)>& layer_done) {
  check(given, cache);
  workspace_.reset();
  std::array<BatchPart, 2> cut;
  const std::span<const BatchPart> split = splitter_.split(given);
  std::copy(split.begin(), split.end(), cut.begin());
  const std::span<BatchPart> halves = std::span(cut).first(split.size());
  const ForwardBatch batch = gpu_ ? gpu_->upload(given, cache.layout().block_tokens, halves) : given;
  const int64_t first = own_rows(halves.front()).count(), others = own_rows(halves.back()).count();
  const StepMemory memory = take_step_memory(halves.size() > 1 ? first + others : first);
  const TensorView table(weights_.embedding.data(), weights_.embedding_dtype,
                         {config_.vocab_size, config_.hidden_size});
  if (ctx_.spans) ctx_.spans->enter(-1, 0);
  std::array<Part, 2> parts = {make_part(batch, cache, memory, halves.front(), 0),
                               make_part(batch, cache, memory, halves.back(), halves.size() > 1 ? first : 0)};
  const std::span<Part> running(parts.data(), halves.size());
  parts[1].channel = 1;
  for (int32_t i = 0; i < 2; ++i) parts[size_t(i)].spans = PartSpans(ctx_.spans, i);
  if (layer_done) running.back().layer_done = &layer_done;
  for (const Part& part : running) {
    if (part.rows > 0) kernels::embed(ctx_, part.of_rows(batch.token_ids), table, part.hidden);
  }
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) {
    for (Part& part : running) {
      RETURN_IF_ERROR(finish_mlp(part));
      part.spans.begin_layer(layer);
      if (part.all.rows > 0) RETURN_IF_ERROR(attention(layer, part));
      begin_mlp(layer, part);
    }
    for (Part& part : running) {
      if (part.waits_for_layer == layer) RETURN_IF_ERROR(run_experts(layer, part));
    }
  }
  for (Part& part : running) RETURN_IF_ERROR(finish_mlp(part));
  if (ctx_.spans) ctx_.spans->enter(-1, 0);
  if (!batch.logit_rows.empty()) RETURN_IF_ERROR(logits(batch, running));
  if (gpu_ && batch.expert_counts) gpu_->add_counts(batch.expert_counts);
  return Ok{};
}

// From the residual stream to what queries are made of, for all rows; on the way the latents go into the cache.
Result<TensorView> DeepseekModel::query_inputs(int32_t layer, const Part& part) {
  const AttentionWeights& w = weights_.attention[size_t(layer)];
  const int64_t rows = part.rows, q_lora = config_.q_lora_rank, width = q_lora + shape_.row_width();
  const int64_t input_width = q_lora > 0 ? q_lora : int64_t(config_.hidden_size);
  const bool alone = gather_.is_alone();
  const TensorView x =
      alone || q_lora > 0 ? act(rows, config_.hidden_size) : gather_.latents(ctx_.act_dtype(), rows, input_width);
  TensorView input = x;
  if (rows > 0) {
    kernels::rms_norm(ctx_, part.hidden, config_.hidden_size, w.input_norm.view(), config_.rms_norm_eps, x, {});
    const TensorView down = f32(rows, width);
    kernels::linear(ctx_, x, w.down, down);
    const TensorView kv_a(down.as<float>() + q_lora, DType::kF32, {rows, shape_.row_width()});
    kernels::mla_write_cache(ctx_, shape_, kv_a, width, w.kv_a_norm.view(), config_.rms_norm_eps,
                             part.of_rows(part.batch.positions), part.of_rows(part.batch.slots), shared_->rope.table(),
                             cache_of(layer, part));
    if (q_lora > 0) {
      input = alone ? act(rows, q_lora) : gather_.latents(ctx_.act_dtype(), rows, q_lora);
      const TensorView q_a(down.data(), DType::kF32, {rows, q_lora});
      kernels::rms_norm(ctx_, q_a, width, w.q_a_norm.view(), config_.rms_norm_eps, input, {});
    }
  }
  if (!alone) {
    input = act(part.all.rows, input_width);
    RETURN_IF_ERROR(gather_.gather_latents({part.batch.step, layer}, input));
  }
  if (part.layer_done) {
    if (stream_) stream_->synchronize();
    (*part.layer_done)(layer);
  }
  return input;
}

// This rank's heads of the queries, rotated, for all rows.
Result<TensorView> DeepseekModel::project(int32_t layer, const Part& part) {
  const int64_t rows = part.all.rows, heads = shape_.num_heads, head_dim = shape_.nope_dim + shape_.rope_dim;
  const TensorView q_out = act(rows, heads * head_dim);
  const WorkspaceScope scope(workspace_);
  ASSIGN_OR_RETURN(const TensorView input, query_inputs(layer, part));
  const TensorView q = f32(rows, heads * head_dim);
  kernels::linear(ctx_, input, weights_.attention[size_t(layer)].q_up[size_t(gather_.index())], q);
  const TensorView q_in(q.data(), DType::kF32, {rows, heads, head_dim});
  const TensorView rotated(q_out.data(), q_out.dtype(), {rows, heads, head_dim});
  kernels::mla_rope_q(ctx_, shape_, q_in, part.of_all_rows(part.batch.positions), shared_->rope.table(), rotated);
  return rotated;
}

Status DeepseekModel::attention(int32_t layer, const Part& part) {
  const AttentionWeights& w = weights_.attention[size_t(layer)];
  const kernels::KvUpWeights& kv_up = w.kv_up[size_t(gather_.index())];
  const WorkspaceScope scope(workspace_);
  ASSIGN_OR_RETURN(const TensorView q, project(layer, part));
  const int64_t rows = part.all.rows, columns = int64_t(shape_.num_heads) * shape_.v_dim;
  TensorView out = gather_.is_alone() ? act(rows, columns) : gather_.heads(ctx_.act_dtype(), rows, columns);
  if (part.batch.phase == Phase::kPrefill) {
    kernels::mla_prefill(ctx_, shape_, q, kv_up, cache_of(layer, part), part.all.sequences, out);
  } else {
    kernels::mla_decode(ctx_, shape_, q, kv_up, cache_of(layer, part), part.all.sequences, out);
  }
  if (!gather_.is_alone()) {
    out = act(part.rows, int64_t(config_.num_heads) * shape_.v_dim);
    RETURN_IF_ERROR(gather_.gather_heads({part.batch.step, layer}, rows, out));
  }
  kernels::linear_add(ctx_, out, w.output, part.hidden);
  return Ok{};
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
  if (part.rows == 0 && !routed) return part.spans.end_layer();
  const bool wants_f32 = routed && part.x_f32.data() != part.x.data();
  if (part.rows > 0) {
    kernels::rms_norm(ctx_, part.hidden, config_.hidden_size, w.norm.view(), config_.rms_norm_eps, part.x,
                      wants_f32 ? part.x_f32 : TensorView());
  }
  if (!routed) {
    dense_mlp(w.always, w.always_width, part.x, part.hidden);
    return part.spans.end_layer();
  }
  if (part.rows > 0) {
    const WorkspaceScope scope(workspace_);
    const TensorView bias = w.bias.rows > 0 ? w.bias.view() : TensorView();
    kernels::gate(ctx_, config_.gate, part.x_f32, w.router.view(), bias, part.ids, part.gate_weights);
  }
  choose_slots(layer, part);
  exchange_->post_dispatch(part.channel, {part.batch.step, layer}, part.batch.exchange_mode, part.x, part.ids);
  part.waits_for_layer = layer;
  part.spans.dispatched(part.batch.step, layer);
}

// The shared experts while rows travel, then this rank's slots on the rows of all ranks.
Status DeepseekModel::run_experts(int32_t layer, Part& part) {
  part.spans.enter(layer);
  const MlpWeights& w = weights_.mlp[size_t(layer)];
  if (w.always_width > 0 && part.rows > 0) dense_mlp(w.always, w.always_width, part.x, part.hidden);
  ASSIGN_OR_RETURN(const parallel::ReceivedRows received, receive(part));
  if (received.results.dim(0) > 0) {
    const WorkspaceScope scope(workspace_);
    kernels::grouped_mlp(ctx_, received.rows, received.sort, slots_->weights(layer), config_.moe_intermediate_size,
                         received.results);
  }
  exchange_->post_results(part.channel);
  part.spans.answered();
  return Ok{};
}

// Adds the results of the layer that the part waits for, if any.
Status DeepseekModel::finish_mlp(Part& part) {
  if (part.waits_for_layer < 0) return Ok{};
  part.spans.enter(part.waits_for_layer);
  part.spans.begin_wait();
  part.waits_for_layer = -1;
  for (;;) {
    ASSIGN_OR_RETURN(const bool complete, exchange_->poll_results(part.channel, clock_->now(), part.results));
    if (complete) break;
    exchange_->wait(part.channel, kExchangeLook);
  }
  part.spans.results_came();
  if (part.rows > 0) kernels::combine(ctx_, part.results, part.gate_weights, part.hidden);
  part.spans.end_layer();
  return Ok{};
}

// Counts logical experts, then turns them into slots in place.
void DeepseekModel::choose_slots(int32_t layer, const Part& part) const {
  const uint64_t seed = part.batch.step * uint64_t(config_.num_layers) + uint64_t(layer);
  if (gpu_) {
    CHECK(part.batch.slot_counts == nullptr);
    CHECK(part.batch.chosen_slots == nullptr);
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
  int32_t* slot_counts = part.batch.slot_counts;
  if (slot_counts) slot_counts += int64_t(layer) * int64_t(slots_->layer(layer).logical_of_slot.size());
  const int32_t* const first_id = id;
  for (int64_t token = part.first_row; token < part.first_row + part.rows; ++token) {
    // A benchmark aid: any top_k different experts, evenly.
    const uint32_t first = experts::draw_of(seed, uint64_t(token), 0);
    for (int64_t k = 0; k < top_k; ++k, ++id) {
      if (fakes_routing_) *id = int32_t((first + k * config_.num_routed_experts / top_k) % config_.num_routed_experts);
      if (counts) ++counts[*id];
      *id = dispatch.choose(*id, experts::draw_of(seed, uint64_t(token), uint32_t(k)));
      if (slot_counts) ++slot_counts[*id];
    }
  }
  if (part.batch.chosen_slots == nullptr) return;
  const int64_t row = int64_t(layer) * int64_t(part.batch.token_ids.size()) + part.first_row;
  std::copy_n(first_id, part.rows * top_k, part.batch.chosen_slots + row * top_k);
}

Result<parallel::ReceivedRows> DeepseekModel::receive(Part& part) {
  part.spans.begin_wait();
  for (;;) {
    ASSIGN_OR_RETURN(const std::optional<parallel::ReceivedRows> received,
                     exchange_->poll_received(part.channel, clock_->now()));
    if (received) {
      part.spans.rows_came(gpu_ ? std::span<const int32_t>() : received->sort.slot_begin);  // a GPU's lie there
      return *received;
    }
    exchange_->wait(part.channel, kExchangeLook);
  }
}

// The residual stream of the rows whose logits are wanted, from wherever they were worked on.
Status DeepseekModel::choose_rows(const ForwardBatch& batch, std::span<const Part> parts, TensorView chosen) {
  const int64_t hidden = config_.hidden_size;
  if (gpu_) {  // a rank alone: the parts' rows follow each other
    const TensorView all(parts.front().hidden.data(), DType::kF32, {int64_t(batch.token_ids.size()), hidden});
    kernels::gather_rows(ctx_, all, batch.logit_rows, chosen);
    return Ok{};
  }
  const TensorView shown = gather_.is_alone() ? chosen : gather_.chosen(chosen.dim(0), hidden);
  int32_t* owners = workspace_.take_array<int32_t>(batch.logit_rows.size());
  for (size_t i = 0; i < batch.logit_rows.size(); ++i) {
    const int64_t row = batch.logit_rows[i];
    CHECK(row >= 0);
    CHECK(row < int64_t(batch.token_ids.size()));
    const Part& part = row < parts.front().all.rows ? parts.front() : parts.back();
    owners[i] = parallel::owner_of(row - part.all.first_row, part.all.rows, gather_.size());
    if (owners[i] != gather_.index()) continue;
    std::memcpy(shown.as<float>() + int64_t(i) * hidden, part.hidden.as<float>() + (row - part.first_row) * hidden,
                size_t(hidden) * sizeof(float));
  }
  if (gather_.is_alone()) return Ok{};
  return gather_.gather_chosen({batch.step, config_.num_layers}, {owners, batch.logit_rows.size()}, chosen);
}

// Each rank computes its share of the vocabulary.
Status DeepseekModel::logits(const ForwardBatch& batch, std::span<const Part> parts) {
  const WorkspaceScope scope(workspace_);
  const int64_t rows = int64_t(batch.logit_rows.size()), hidden = config_.hidden_size;
  const TensorView chosen = f32(rows, hidden);
  RETURN_IF_ERROR(choose_rows(batch, parts, chosen));
  const TensorView x = act(rows, hidden);
  kernels::rms_norm(ctx_, chosen, hidden, weights_.final_norm.view(), config_.rms_norm_eps, x, {});
  const kernels::PackedWeight& head = weights_.head[size_t(gather_.index())];
  const TensorView all(batch.logits, DType::kF32, {rows, config_.vocab_size});
  const TensorView mine = gather_.is_alone() ? all : gather_.logits(rows, head.rows());
  kernels::linear(ctx_, x, head, mine);
  return gather_.is_alone() ? Status(Ok{}) : gather_.gather_logits({batch.step, config_.num_layers}, all);
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
