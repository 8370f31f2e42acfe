#include "parallel/exchange/collect.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/fp8_rows.h"

namespace tandem::parallel {
namespace {

int64_t row_bytes(const ExchangeShape& shape) { return shape.hidden * int64_t(size_of(shape.dtype)); }
int64_t max_rows(const ExchangeShape& shape) { return int64_t(shape.num_ranks) * shape.max_tokens; }
// A token brings at most one pair per slot of this rank.
int64_t max_pairs(const ExchangeShape& shape) { return max_rows(shape) * std::min(shape.top_k, shape.slots_per_rank); }
// One rank alone reads its rows where they lie, if they are as they were.
bool reads_in_place(const ExchangeShape& shape) {
  return shape.num_ranks == 1 && shape.payload == ExchangePayload::kAsTheyAre;
}
int64_t rows_buffer(const ExchangeShape& shape) {
  return reads_in_place(shape) ? 0 : max_rows(shape) * row_bytes(shape);
}

}  // namespace

Collector::Collector(const ExchangeShape& shape, Rank rank)
    : shape_(shape),
      rank_(rank),
      taken_(size_t(shape.num_ranks)),
      rows_(device::Device::kCpu, size_t(rows_buffer(shape))),
      results_(device::Device::kCpu, size_t(max_pairs(shape) * shape.hidden) * sizeof(float)),
      row_of_(size_t(max_rows(shape) * shape.top_k)),
      slot_begin_(size_t(shape.slots_per_rank) + 1),
      row_token_(size_t(max_pairs(shape))) {}

int64_t Collector::bytes(const ExchangeShape& shape) {
  return rows_buffer(shape) + max_pairs(shape) * shape.hidden * int64_t(sizeof(float)) +
         (max_rows(shape) * shape.top_k + shape.slots_per_rank + 1 + max_pairs(shape)) * int64_t(sizeof(int32_t));
}

void Collector::start(ExchangeMode mode) {
  mode_ = mode;
  num_rows_ = 0;
  std::fill(slot_begin_.begin(), slot_begin_.end(), 0);
}

void Collector::add(int32_t source_rank, const ExchangeSource& source) {
  const bool low_latency = mode_ == ExchangeMode::kLowLatency;
  CHECK(source.num_tokens <= (low_latency ? shape_.max_low_latency_tokens : shape_.max_tokens));
  Taken& taken = taken_[size_t(source_rank)];
  taken.source = source;
  taken.first_row = low_latency ? source_rank * shape_.max_low_latency_tokens : num_rows_;
  int32_t* row_of = row_of_.data() + size_t(source_rank) * size_t(shape_.max_tokens) * size_t(shape_.top_k);
  const bool in_place = reads_in_place(shape_);
  int64_t row = taken.first_row;
  for (int64_t t = 0; t < source.num_tokens; ++t) {
    bool wanted = false;
    for (int32_t k = 0; k < shape_.top_k; ++k) {
      const int64_t pair = t * shape_.top_k + k;
      const int32_t slot = source.slots[pair];
      row_of[pair] = -1;
      if (slot < 0 || !is_local(slot)) continue;
      wanted = true;
      row_of[pair] = int32_t(row);  // becomes the sorted row in finish()
      ++slot_begin_[size_t(slot - rank_.value * shape_.slots_per_rank) + 1];
    }
    if (wanted && !in_place) take_row(source, t, row);
    if (wanted || in_place) ++row;
  }
  num_rows_ = std::max(num_rows_, row);
}

void Collector::take_row(const ExchangeSource& source, int64_t token, int64_t row) {
  auto* const to = static_cast<std::byte*>(rows_.data()) + row * row_bytes(shape_);
  const std::byte* from = source.x + token * payload_row_bytes(shape_);
  if (shape_.payload == ExchangePayload::kFp8) {
    return kernels::dequantise_row(from, shape_.hidden, reinterpret_cast<float*>(to));
  }
  std::memcpy(to, from, size_t(row_bytes(shape_)));
}

ReceivedRows Collector::finish() {
  const int32_t slots = shape_.slots_per_rank;
  for (int32_t s = 0; s < slots; ++s) slot_begin_[size_t(s) + 1] += slot_begin_[size_t(s)];
  const int32_t pairs = slot_begin_[size_t(slots)];
  CHECK(size_t(pairs) <= row_token_.size());  // a token's slots are all different
  // slot_begin_[s] moves to its end while pairs are placed, which is where slot_begin_[s + 1] was: shifted back below.
  for (int32_t rank = 0; rank < shape_.num_ranks; ++rank) {
    const ExchangeSource& source = taken_[size_t(rank)].source;
    int32_t* row_of = row_of_.data() + size_t(rank) * size_t(shape_.max_tokens) * size_t(shape_.top_k);
    for (int64_t pair = 0; pair < source.num_tokens * shape_.top_k; ++pair) {
      if (row_of[pair] < 0) continue;
      const int32_t sorted = slot_begin_[size_t(source.slots[pair] - rank_.value * slots)]++;
      row_token_[size_t(sorted)] = row_of[pair];
      row_of[pair] = sorted;
    }
  }
  for (int32_t s = slots; s > 0; --s) slot_begin_[size_t(s)] = slot_begin_[size_t(s) - 1];
  slot_begin_[0] = 0;
  void* rows = reads_in_place(shape_) ? const_cast<std::byte*>(taken_[0].source.x) : rows_.data();
  ReceivedRows received;
  received.rows = device::TensorView(rows, shape_.dtype, {num_rows_, shape_.hidden});
  received.sort = {{slot_begin_.data(), slot_begin_.size()}, {row_token_.data(), size_t(pairs)}};
  received.results = device::TensorView(results_.data(), device::DType::kF32, {int64_t(pairs), shape_.hidden});
  return received;
}

}  // namespace tandem::parallel
