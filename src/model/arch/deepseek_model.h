// The model's class, split over two files: deepseek.cc runs a step, deepseek_layers.cc what a layer does. Private to
// them.
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "model/arch/batch_split.h"
#include "model/arch/decode_graphs.h"
#include "model/arch/deepseek.h"
#include "model/arch/deepseek_weights.h"
#include "model/arch/gpu_step.h"
#include "model/arch/group_gather.h"
#include "model/arch/part_spans.h"
#include "model/weights/rope_table.h"

namespace tandem::model {

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

inline kernels::MlaShape shape_of_rank(const ModelConfig& config, const GroupGather& group) {
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
  void finish(const ForwardBatch& batch) override;
  bool ran_recorded() const override { return ran_recorded_; }
  Status record_decode(const DecodeRecording& what, kv::KvStorage& cache, float* logits) override;
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
    device::TensorView hidden;    // the residual stream
    device::TensorView x, x_f32;  // normalised input of the layer's MLP; one and the same where activations are f32
    device::TensorView ids, gate_weights;  // choices of experts, later of slots
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
    device::TensorView hidden, x, x_f32, ids, gate_weights;
    const float** results = nullptr;
  };

  // Unclear memory of the step, gone when its scope ends.
  device::TensorView f32(int64_t rows, int64_t cols) { return take(device::DType::kF32, rows, cols); }
  device::TensorView act(int64_t rows, int64_t cols) { return take(ctx_.act_dtype(), rows, cols); }
  device::TensorView take(device::DType dtype, int64_t rows, int64_t cols) {
    return {workspace_.take(size_t(rows * cols) * size_of(dtype)), dtype, {rows, cols}};
  }

  void check(const ForwardBatch& batch, const kv::KvStorage& cache) const;
  StepMemory take_step_memory(int64_t rows);
  Status run(const ForwardBatch& batch, kv::KvStorage& cache, const std::function<void(int32_t)>& layer_done);
  Status compute(const ForwardBatch& batch, kv::KvStorage& cache, std::span<BatchPart> halves,
                 const std::function<void(int32_t)>& layer_done);
  const DecodeGraphs::Recorded* find_recorded(const ForwardBatch& batch, const kv::KvStorage& cache) const;
  parallel::RowShare own_rows(const BatchPart& part) const {
    return parallel::share_of(part.rows, gather_.size(), gather_.index());
  }
  // first: where the part's rows begin in the memory.
  Part make_part(const ForwardBatch& batch, kv::KvStorage& cache, const StepMemory& memory, const BatchPart& all,
                 int64_t first) const;
  Status attention(int32_t layer, const Part& part);
  Result<device::TensorView> project(int32_t layer, const Part& part);
  kernels::PagedCache cache_of(int32_t layer, const Part& part) const {
    const kv::KvLayout& layout = part.cache.layout();
    return {part.cache.layer_base(layer), layout.dtype, layout.block_tokens, layout.num_blocks};
  }
  Result<device::TensorView> query_inputs(int32_t layer, const Part& part);
  void dense_mlp(const kernels::ExpertWeights& w, int32_t width, device::TensorView x, device::TensorView hidden);
  void begin_mlp(int32_t layer, Part& part);
  Status run_experts(int32_t layer, Part& part);
  Status finish_mlp(Part& part);
  void choose_slots(int32_t layer, const Part& part) const;
  Result<parallel::ReceivedRows> receive(Part& part);
  Status logits(const ForwardBatch& batch, std::span<const Part> parts);
  Status choose_rows(const ForwardBatch& batch, std::span<const Part> parts, device::TensorView chosen);

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
  const kernels::Context ctx_;
  std::unique_ptr<GpuStep> gpu_;
  DecodeGraphs graphs_;
  bool ran_recorded_ = false;
};

}  // namespace tandem::model
