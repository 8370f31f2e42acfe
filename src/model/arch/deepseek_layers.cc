// What a layer does with a part of a step: attention, gate, experts.
#include <algorithm>

#include "kernels/norm.h"
#include "model/arch/deepseek_model.h"
#include "model/arch/slot_choice.h"

namespace tandem::model {

namespace {

// Longest sleep between two looks at an exchange; what comes wakes the thread at once.
constexpr Duration kExchangeLook = std::chrono::milliseconds(20);

}  // namespace

using device::DType;
using device::TensorView;
using device::WorkspaceScope;

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
    if (gpu_) {
      kernels::grouped_mlp(ctx_, received.rows, received.sort, gpu_->places(layer), config_.moe_intermediate_size,
                           received.results);
    } else {
      kernels::grouped_mlp(ctx_, received.rows, received.sort, slots_->weights(layer), config_.moe_intermediate_size,
                           received.results);
    }
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
  const ForwardBatch& batch = part.batch;
  if (gpu_) {
    CHECK(batch.slot_counts == nullptr);
    CHECK(batch.chosen_slots == nullptr);
    kernels::SlotChoice choice = gpu_->choice(layer);
    choice.first_token = part.first_row;
    choice.fakes_routing = fakes_routing_;
    return kernels::choose_slots(ctx_, choice, part.ids, gpu_->counts(layer));
  }
  SlotChoices how;
  how.seed = batch.step * uint64_t(config_.num_layers) + uint64_t(layer);
  how.first_token = part.first_row;
  how.top_k = config_.gate.top_k;
  how.fakes_routing = fakes_routing_ ? config_.num_routed_experts : 0;
  const LayerExperts& maps = slots_->layer(layer);
  if (batch.expert_counts) how.expert_counts = batch.expert_counts + int64_t(layer) * config_.num_routed_experts;
  if (batch.slot_counts) how.slot_counts = batch.slot_counts + int64_t(layer) * int64_t(maps.logical_of_slot.size());
  const std::span<int32_t> ids(part.ids.as<int32_t>(), size_t(part.rows * how.top_k));
  model::choose_slots(maps.dispatch, how, ids);
  if (batch.chosen_slots == nullptr) return;
  const int64_t row = int64_t(layer) * int64_t(batch.token_ids.size()) + part.first_row;
  std::copy(ids.begin(), ids.end(), batch.chosen_slots + row * how.top_k);
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

}  // namespace tandem::model
