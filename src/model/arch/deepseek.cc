#include "model/arch/deepseek.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/norm.h"
#include "model/arch/deepseek_model.h"

namespace tandem::model {

using device::DType;
using device::TensorView;
using device::WorkspaceScope;

void DeepseekModel::check(const ForwardBatch& batch, const kv::KvStorage& cache) const {
  CHECK(int64_t(batch.token_ids.size()) <= limits_.max_tokens);
  CHECK(batch.positions.size() == batch.token_ids.size());
  CHECK(batch.slots.size() == batch.token_ids.size());
  CHECK(int64_t(batch.sequences.size()) <= limits_.max_sequences);
  CHECK(int64_t(batch.logit_rows.size()) <= limits_.max_logit_rows);
  CHECK(batch.logit_rows.empty() || batch.logits || !gather_.is_alone());
  CHECK(cache.layout().num_layers == config_.num_layers);
  CHECK(cache.layout().row_width == shape_.row_width());
  CHECK(cache.layout().dtype != DType::kI32);
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

Status DeepseekModel::run(const ForwardBatch& given, kv::KvStorage& cache,
                          const std::function<void(int32_t)>& layer_done) {
  check(given, cache);
  workspace_.reset();
  const DecodeGraphs::Recorded* const recorded = layer_done ? nullptr : find_recorded(given, cache);
  ran_recorded_ = recorded != nullptr;
  std::array<BatchPart, 2> cut;
  if (recorded) {
    gpu_->upload_filled(given, cache.layout().block_tokens, recorded->rows, cut[0]);
    recorded->graph.launch(*stream_);
  } else {
    const std::span<const BatchPart> split = splitter_.split(given);
    std::copy(split.begin(), split.end(), cut.begin());
    const std::span<BatchPart> halves = std::span(cut).first(split.size());
    const ForwardBatch batch = gpu_ ? gpu_->upload(given, cache.layout().block_tokens, halves) : given;
    RETURN_IF_ERROR(compute(batch, cache, halves, layer_done));
  }
  if (gpu_ && given.expert_counts) gpu_->send_counts();
  return Ok{};
}

void DeepseekModel::finish(const ForwardBatch& batch) {
  if (gpu_ && batch.expert_counts) gpu_->add_counts(batch.expert_counts);
}

// Spans and launches are those of the host, which a recorded step does not have.
const DecodeGraphs::Recorded* DeepseekModel::find_recorded(const ForwardBatch& batch,
                                                           const kv::KvStorage& cache) const {
  const bool is_watched = (ctx_.spans && ctx_.spans->on()) || (ctx_.launches && ctx_.launches->is_on());
  return is_watched ? nullptr : graphs_.find(batch, cache);
}

// Each size runs once as it is, so that all it needs is loaded, and is then recorded. All its rows fill it up.
Status DeepseekModel::record_decode(const DecodeRecording& what, kv::KvStorage& cache, float* logits) {
  CHECK(gpu_ != nullptr);
  const bool is_alone = exchange_ == nullptr || exchange_->shape().num_ranks == 1;
  graphs_ = DecodeGraphs(what, is_alone, cache, logits);
  ForwardBatch nothing;
  nothing.phase = Phase::kDecode;
  nothing.exchange_mode = what.exchange_mode;
  nothing.logits = logits;
  for (const int32_t rows : what.batch_sizes) {
    CHECK(rows > 0 && rows <= std::min({limits_.max_tokens, limits_.max_sequences, limits_.max_logit_rows}));
    for (const bool records : {false, true}) {
      workspace_.reset();
      BatchPart all;
      const ForwardBatch batch = gpu_->upload_filled(nothing, cache.layout().block_tokens, rows, all);
      if (records) device::Graph::begin_recording(*stream_);
      RETURN_IF_ERROR(compute(batch, cache, {&all, 1}, {}));
      if (records) graphs_.add(rows, device::Graph::end_recording(*stream_));
    }
  }
  stream_->synchronize();
  return Ok{};
}

// Per layer and half: results of the layer before come in, attention, gate, rows go out; then each half's experts. With
// two halves the rows and results of one travel while the other computes.
Status DeepseekModel::compute(const ForwardBatch& batch, kv::KvStorage& cache, std::span<BatchPart> halves,
                              const std::function<void(int32_t)>& layer_done) {
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
  return batch.logit_rows.empty() ? Status(Ok{}) : logits(batch, running);
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

Result<std::vector<std::unique_ptr<Model>>> build_deepseek(const ModelConfig& config, const WeightSource& source,
                                                           const LoadOptions& options, std::vector<RankOptions> ranks) {
  CHECK(!ranks.empty());
  // Ranks of the CPU share what is not theirs alone; on GPUs each has its own.
  const size_t together = is_cuda(options.backend) ? 1 : ranks.size();
  std::vector<std::unique_ptr<Model>> models;
  for (size_t first = 0; first < ranks.size(); first += together) {
    std::vector<RankExperts> experts;
    for (size_t i = first; i < first + together; ++i) experts.push_back({ranks[i].rank, ranks[i].gpu, nullptr});
    if (is_cuda(options.backend)) device::use_gpu(ranks[first].gpu);
    ASSIGN_OR_RETURN(std::unique_ptr<DeepseekWeights> weights, pack_deepseek(config, source, options, experts));
    const auto shared = std::make_shared<const DeepseekShared>(config, source, options, std::move(weights));
    for (size_t i = 0; i < together; ++i) {
      models.push_back(
          std::make_unique<DeepseekModel>(shared, options, std::move(ranks[first + i]), std::move(experts[i].slots)));
    }
  }
  return models;
}

}  // namespace tandem::model
