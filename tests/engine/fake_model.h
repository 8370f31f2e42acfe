// A model whose next token is a hash of every token before it, read back from the cache rows that forward() wrote, in
// every layer. A row that is missing, stale, foreign or damaged changes the answer or counts as a fault, so a wrong
// block table, a lost transfer or a reused block cannot go unnoticed. expected_tokens() is the same rule without a
// cache.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <vector>

#include "model/model.h"

namespace tandem::testing {

inline uint64_t hash_step(uint64_t state, int32_t token) {
  state ^= uint64_t(uint32_t(token)) + 0x9e3779b97f4a7c15ull + (state << 6) + (state >> 2);
  state *= 0xff51afd7ed558ccdull;
  return state ^ (state >> 33);
}
inline int32_t token_of(uint64_t state, int32_t vocab_size) { return int32_t(state % uint64_t(vocab_size)); }

// Greedy continuation by the rule, without regard to end-of-sentence.
inline std::vector<int32_t> expected_tokens(std::span<const int32_t> prompt, int32_t count, int32_t vocab_size) {
  uint64_t state = 1;
  for (const int32_t token : prompt) state = hash_step(state, token);
  std::vector<int32_t> out;
  for (int32_t i = 0; i < count; ++i) {
    out.push_back(token_of(state, vocab_size));
    state = hash_step(state, out.back());
  }
  return out;
}

struct FakeRow {  // one cache row: 8 bytes, row_width 4 of bf16
  int32_t token;
  int32_t tag;
};

inline kv::KvLayout fake_layout(int32_t num_layers, int32_t block_tokens, int32_t max_total_tokens) {
  return {num_layers, 4, device::DType::kBF16, block_tokens, max_total_tokens / block_tokens};
}

class FakeModel final : public model::Model {
 public:
  FakeModel(int32_t num_layers, int32_t vocab_size, uint64_t fingerprint = 1) : fingerprint_(fingerprint) {
    config_.num_layers = num_layers;
    config_.vocab_size = vocab_size;
    config_.eos_token_ids = {1};
  }
  const model::ModelConfig& config() const override { return config_; }
  uint64_t fingerprint() const override { return fingerprint_; }

  model::ExpertSlots* expert_slots() override { return nullptr; }
  Status forward(const model::ForwardBatch& batch, kv::KvStorage& cache,
                 const std::function<void(int32_t layer)>& layer_done) override {
    forwards += 1;
    digest_batch(batch, cache.layout().block_tokens);
    if (follows) return Ok{};
    for (int32_t layer = 0; layer < config_.num_layers; ++layer) {
      for (size_t i = 0; i < batch.token_ids.size(); ++i) {
        rows(cache, layer)[batch.slots[i]] = {batch.token_ids[i], tag(layer, batch.positions[i])};
      }
      if (layer_done) layer_done(layer);
    }
    for (size_t i = 0; i < batch.logit_rows.size(); ++i) {
      float* logits = batch.logits + int64_t(i) * config_.vocab_size;
      fill(logits, next_token(batch, cache, batch.logit_rows[i]));
    }
    return Ok{};
  }

  int64_t forwards = 0, faults = 0;
  uint64_t digest = 0;  // of all that every step was asked to do
  bool produces_nan = false;
  bool follows = false;  // another rank's model writes the cache and answers

 private:
  void digest_batch(const model::ForwardBatch& batch, int32_t block_tokens) {
    digest = hash_step(digest, int32_t(batch.step) * 4 + int32_t(batch.phase) * 2 + (batch.two_batches ? 1 : 0));
    for (const auto& values : {batch.token_ids, batch.positions, batch.slots, batch.logit_rows}) {
      for (const int32_t value : values) digest = hash_step(digest, value);
      digest = hash_step(digest, -1);
    }
    for (const kernels::SequenceSpan& sequence : batch.sequences) {
      digest = hash_step(digest, sequence.first_row);
      digest = hash_step(digest, sequence.num_rows);
      digest = hash_step(digest, sequence.prefix_len);
      for (int32_t i = 0; i <= (sequence.prefix_len + sequence.num_rows - 1) / block_tokens; ++i) {
        digest = hash_step(digest, sequence.block_table[i]);
      }
    }
  }

  static int32_t tag(int32_t layer, int32_t position) { return layer * 1000003 + position; }
  static FakeRow* rows(kv::KvStorage& cache, int32_t layer) { return static_cast<FakeRow*>(cache.layer_base(layer)); }

  int32_t next_token(const model::ForwardBatch& batch, kv::KvStorage& cache, int32_t row) {
    for (const kernels::SequenceSpan& sequence : batch.sequences) {
      if (row < sequence.first_row || row >= sequence.first_row + sequence.num_rows) continue;
      const int32_t end = sequence.prefix_len + (row - sequence.first_row) + 1;
      const int32_t block_tokens = cache.layout().block_tokens;
      uint64_t state = 1;
      for (int32_t p = 0; p < end; ++p) {
        const int32_t slot = sequence.block_table[p / block_tokens] * block_tokens + p % block_tokens;
        const int32_t token = rows(cache, 0)[slot].token;
        for (int32_t layer = 0; layer < config_.num_layers; ++layer) {
          const FakeRow& found = rows(cache, layer)[slot];
          if (found.token != token || found.tag != tag(layer, p)) faults += 1;
        }
        state = hash_step(state, token);
      }
      return token_of(state, config_.vocab_size);
    }
    faults += 1;
    return 0;
  }

  void fill(float* logits, int32_t token) const {
    for (int32_t v = 0; v < config_.vocab_size; ++v) logits[v] = -float(v % 7);
    logits[token] = 9.0f;
    if (produces_nan) logits[0] = __builtin_nanf("");
  }

  model::ModelConfig config_;
  uint64_t fingerprint_;
};

}  // namespace tandem::testing
