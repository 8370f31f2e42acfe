// Batch: the arrays of one step, allocated once for the largest step, and who stands where in them.
// Owner: the engine thread.
#pragma once

#include <span>
#include <vector>

#include "device/buffer.h"
#include "engine/step/request.h"
#include "model/model.h"
#include "parallel/step_protocol.h"

namespace tandem::engine {

struct BatchEntry {
  Request* request = nullptr;
  int32_t first_token = 0;  // position of its first token in this step
  int32_t num_tokens = 0;
  int32_t first_row = 0;  // of its logits
  int32_t num_rows = 0;
  bool samples = false;                                                // its last row gives the next token
  int32_t input_rows() const { return num_rows - (samples ? 1 : 0); }  // rows of input log-probabilities, first
  int32_t end_token() const { return first_token + num_tokens; }
};

class Batch {
 public:
  // device: where logits lie.
  Batch(const model::ForwardLimits& limits, int32_t vocab_size, int32_t block_tokens,
        device::Device device = device::Device::kCpu);

  void start(model::Phase phase);
  // Takes tokens [first_token, first_token + num_tokens) of the request into the step and marks it as in_step.
  void add(Request& request, int32_t first_token, int32_t num_tokens, bool samples);
  bool empty() const { return entries_.empty(); }
  std::span<const BatchEntry> entries() const { return entries_; }
  int32_t num_tokens() const { return int32_t(token_ids_.size()); }
  int32_t num_rows() const { return int32_t(rows_.size()); }
  parallel::StepKind kind() const;

  // Valid until the next start(); the block tables are the requests' own.
  model::ForwardBatch forward_batch();
  device::TensorView logits() const;

 private:
  const model::ForwardLimits limits_;
  const int32_t vocab_size_, block_tokens_;
  model::Phase phase_ = model::Phase::kPrefill;
  std::vector<BatchEntry> entries_;
  std::vector<int32_t> token_ids_, positions_, slots_, rows_;
  std::vector<kernels::SequenceSpan> sequences_;
  device::Buffer logits_;
};

}  // namespace tandem::engine
