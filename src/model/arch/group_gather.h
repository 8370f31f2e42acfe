// What the ranks of one attention tensor-parallel group give each other within a step. Each works on its share of the
// batch's rows (parallel::share_of) and, in attention, on its share of the heads for all rows; everything is gathered
// and nothing is summed, so that every number is computed as one rank alone would (docs/decisions/0014).
// Owner: the rank's engine thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/clock.h"
#include "device/buffer.h"
#include "device/tensor.h"
#include "parallel/attention_group.h"

namespace tandem::model {

// Memory of what a rank shows. Fixed, because others read it while the rank goes on.
struct GatherBytes {
  int64_t latents = 0, heads = 0, chosen = 0, logits = 0;
  int64_t total() const { return latents + heads + chosen + logits; }
};

class GroupGather {
 public:
  // seat null: a rank alone, which gathers nothing. exchange: driven while this rank waits; may be null.
  GroupGather(std::unique_ptr<parallel::AttentionGroup> seat, const GatherBytes& bytes, const Clock* clock,
              parallel::ExpertExchange* exchange);

  bool is_alone() const { return seat_ == nullptr; }
  int32_t size() const { return seat_ ? seat_->size() : 1; }
  int32_t index() const { return seat_ ? seat_->index() : 0; }
  // The others need not wait for this rank any more.
  void give_up() {
    if (seat_) seat_->give_up();
  }

  // Where this rank puts what it shows: views of the memory, of these shapes. Free again when the next gather is done.
  device::TensorView latents(device::DType dtype, int64_t rows, int64_t cols) const;
  device::TensorView heads(device::DType dtype, int64_t rows, int64_t cols) const;
  device::TensorView chosen(int64_t rows, int64_t cols) const;  // f32
  device::TensorView logits(int64_t rows, int64_t cols) const;  // f32

  // From each rank its share of the rows, in latents(): all [rows, cols].
  Status gather_latents(parallel::ExchangeTag tag, device::TensorView all);
  // From each rank all `rows` rows of its heads, in heads(): own [this rank's share of the rows, cols of all ranks].
  Status gather_heads(parallel::ExchangeTag tag, int64_t rows, device::TensorView own);
  // Row i from the rank owners[i], in chosen(): all [rows, cols].
  Status gather_chosen(parallel::ExchangeTag tag, std::span<const int32_t> owners, device::TensorView all);
  // From each rank its share of the columns, in logits(): all [rows, cols]; null: the other ranks want it.
  Status gather_logits(parallel::ExchangeTag tag, device::TensorView all);

 private:
  Status exchange(parallel::ExchangeTag tag, const device::Buffer& mine);
  // Columns of [rows, cols] that lie with the members, side by side into `to`.
  void join_columns(int64_t first_row, device::TensorView to) const;

  const std::unique_ptr<parallel::AttentionGroup> seat_;
  const Clock* const clock_;
  parallel::ExpertExchange* const driven_;
  device::Buffer latents_, heads_, chosen_, logits_;
};

}  // namespace tandem::model
