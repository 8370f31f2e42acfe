#include "engine/step/batch.h"

#include "base/check.h"

namespace tandem::engine {

Batch::Batch(const model::ForwardLimits& limits, int32_t vocab_size, int32_t block_tokens, device::Device device)
    : limits_(limits),
      vocab_size_(vocab_size),
      block_tokens_(block_tokens),
      logits_(device, size_t(limits.max_logit_rows) * size_t(vocab_size) * sizeof(float)) {
  entries_.reserve(size_t(limits.max_sequences));
  sequences_.reserve(size_t(limits.max_sequences));
  token_ids_.reserve(size_t(limits.max_tokens));
  positions_.reserve(size_t(limits.max_tokens));
  slots_.reserve(size_t(limits.max_tokens));
  rows_.reserve(size_t(limits.max_logit_rows));
}

void Batch::start(model::Phase phase) {
  phase_ = phase;
  entries_.clear();
  sequences_.clear();
  token_ids_.clear();
  positions_.clear();
  slots_.clear();
  rows_.clear();
}

void Batch::add(Request& request, int32_t first_token, int32_t num_tokens, bool samples) {
  CHECK(num_tokens > 0);
  CHECK(!request.in_step);
  CHECK(first_token == request.kv_tokens);
  CHECK(first_token + num_tokens <= request.num_tokens());
  const auto first_row_of_batch = int32_t(token_ids_.size());
  BatchEntry entry{.request = &request, .first_token = first_token, .num_tokens = num_tokens};
  entry.first_row = int32_t(rows_.size());
  entry.samples = samples;
  // The row at position p predicts the token at p + 1; the prompt's last row is sampled, not compared.
  const int32_t rows_from = request.wants_input_logprobs() ? request.first_logprob_position() : INT32_MAX;
  for (int32_t i = 0; i < num_tokens; ++i) {
    const int32_t position = first_token + i;
    const int32_t block = request.block_table[size_t(position / block_tokens_)];
    token_ids_.push_back(request.tokens[size_t(position)]);
    positions_.push_back(position);
    slots_.push_back(block * block_tokens_ + position % block_tokens_);
    const bool is_input_row = position >= rows_from && position < request.prompt_tokens - 1;
    const bool is_sampled = samples && i == num_tokens - 1;
    if (is_input_row || is_sampled) rows_.push_back(first_row_of_batch + i);
  }
  entry.num_rows = int32_t(rows_.size()) - entry.first_row;
  sequences_.push_back({first_row_of_batch, num_tokens, first_token, request.block_table.data()});
  entries_.push_back(entry);
  request.in_step = true;
  CHECK(int64_t(token_ids_.size()) <= limits_.max_tokens);
  CHECK(int64_t(entries_.size()) <= limits_.max_sequences);
  CHECK(int64_t(rows_.size()) <= limits_.max_logit_rows);
}

parallel::StepKind Batch::kind() const {
  if (empty()) return parallel::StepKind::kNone;
  return phase_ == model::Phase::kPrefill ? parallel::StepKind::kExtend : parallel::StepKind::kDecode;
}

model::ForwardBatch Batch::forward_batch() {
  model::ForwardBatch batch;
  batch.phase = phase_;
  batch.token_ids = token_ids_;
  batch.positions = positions_;
  batch.slots = slots_;
  batch.sequences = sequences_;
  batch.logit_rows = rows_;
  batch.logits = static_cast<float*>(logits_.data());
  return batch;
}

device::TensorView Batch::logits() const {
  return device::TensorView(logits_.data(), device::DType::kF32, {int64_t(rows_.size()), int64_t(vocab_size_)});
}

}  // namespace tandem::engine
