// What a step on a GPU needs beside the model's workspace: the step's inputs in the GPU's memory, the layers' dispatch
// tables, and the counts of experts. All of it is taken at creation, so that the addresses are the same in every step.
// Owner: the engine thread.
#pragma once

#include <vector>

#include "device/gpu.h"
#include "kernels/moe.h"
#include "model/arch/batch_split.h"
#include "model/model.h"

namespace tandem::model {

class GpuStep {
 public:
  // slots: null without routed experts; its dispatch tables are copied, so placements do not change afterwards.
  GpuStep(const ModelConfig& config, const LoadOptions& options, const ExpertSlots* slots,
          const device::Stream& stream);
  static int64_t bytes(const ModelConfig& config, const ForwardLimits& limits);

  // Sends the inputs on their way. The batch that comes back, and from now on the parts' sequences, lie in the GPU's
  // memory, at addresses that depend on nothing but the rows of the batch.
  ForwardBatch upload(const ForwardBatch& batch, int32_t block_tokens, std::span<BatchPart> parts);
  // A decode batch of one token and one row of logits each, filled up to `rows` with rows that nothing comes of: their
  // caches are not written, and they take no slot.
  ForwardBatch upload_filled(const ForwardBatch& batch, int32_t block_tokens, int64_t rows, BatchPart& part);

  kernels::SlotChoice choice(int32_t layer) const;
  int32_t* counts(int32_t layer) const;  // [num_routed_experts], zero at upload()
  // Waits for the step and adds what was counted.
  void add_counts(int32_t* to) const;

 private:
  struct Table {
    int64_t begin = 0, slot = 0, upto = 0;  // offsets into tables_
  };
  // The next piece of the inputs: where it is written, and where it will lie.
  struct Piece {
    std::byte* host;
    std::byte* gpu;
  };
  Piece take(size_t bytes);
  void begin(const ForwardBatch& batch);
  void finish();
  // Values, then `filling` up to `size` of them.
  std::span<const int32_t> send(std::span<const int32_t> values, size_t size, int32_t filling);
  std::span<const int32_t> send(std::span<const int32_t> values) { return send(values, values.size(), 0); }
  std::span<const kernels::SequenceSpan> send(std::span<const kernels::SequenceSpan> sequences, int32_t block_tokens,
                                              size_t size);
  void copy_tables(const ExpertSlots& slots, bool loop_back);

  const int32_t num_experts_, num_layers_;
  const device::Stream& stream_;
  device::Buffer staging_, inputs_, tables_, counts_;
  std::vector<Table> table_of_layer_;
  size_t used_ = 0;
  const kernels::StepValues* values_ = nullptr;
  device::Event sent_;
  bool in_flight_ = false;
};

}  // namespace tandem::model
