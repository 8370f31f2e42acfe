// What a step on a GPU needs beside the model's workspace: the step's inputs in the GPU's memory, the layers' tables of
// dispatch and places, and the counts of experts. All of it is taken at creation, so that the addresses are the same in
// every step, and steps that were recorded read what lies there by then.
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
  // slots: null without routed experts; outlives this. What it says of dispatch and places is copied here, and again
  // ahead of the next step whenever a layer has switched.
  GpuStep(const ModelConfig& config, const LoadOptions& options, const ExpertSlots* slots,
          const device::Stream& stream);
  static int64_t bytes(const ModelConfig& config, const LoadOptions& options);

  // Sends the inputs on their way. The batch that comes back, and from now on the parts' sequences, lie in the GPU's
  // memory, at addresses that depend on nothing but the rows of the batch.
  ForwardBatch upload(const ForwardBatch& batch, int32_t block_tokens, std::span<BatchPart> parts);
  // A decode batch of one token and one row of logits each, filled up to `rows` with rows that nothing comes of: their
  // caches are not written, and they take no slot.
  ForwardBatch upload_filled(const ForwardBatch& batch, int32_t block_tokens, int64_t rows, BatchPart& part);

  kernels::SlotChoice choice(int32_t layer) const;
  kernels::GpuPlaces places(int32_t layer) const;
  int32_t* counts(int32_t layer) const;  // [num_routed_experts], zero at upload()
  // Behind the step: what was counted goes to the host.
  void send_counts();
  // Waits for send_counts(), and so for the step, and adds what came.
  void add_counts(int32_t* to) const;

 private:
  // A layer's tables, one behind another: where each begins, counted in values. Every layer has room for as many
  // replicas as the group has slots.
  struct TableRow {
    int64_t begin = 0, slot = 0, upto = 0, place = 0, size = 0;
  };
  static TableRow row_of(const ModelConfig& config, const LoadOptions& options);
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
  void write_tables(int32_t layer);
  void follow_switches();

  const int32_t num_experts_, num_layers_;
  const device::Stream& stream_;
  const ExpertSlots* const slots_;
  const bool loop_back_;
  const TableRow row_;
  device::Buffer staging_, inputs_, counts_, counted_;
  device::Buffer table_staging_, tables_;  // [num_layers] rows
  uint64_t switches_seen_ = 0;
  size_t used_ = 0;
  const kernels::StepValues* values_ = nullptr;
  device::Event sent_, counts_sent_;
  bool in_flight_ = false;
};

}  // namespace tandem::model
