#include "parallel/ucx/incoming.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "kernels/fp8_rows.h"

namespace tandem::parallel {

Incoming::Incoming(const ExchangeShape& shape, Rank rank)
    : shape_(shape),
      rank_(rank),
      x_(device::Device::kCpu, size_t(shape.max_tokens * payload_row_bytes(shape))),
      slots_(size_t(shape.max_tokens * shape.top_k)) {}

int64_t Incoming::bytes(const ExchangeShape& shape) {
  return shape.max_tokens * (payload_row_bytes(shape) + shape.top_k * int64_t(sizeof(int32_t)));
}

// What a row in FP8 says is taken for numbers only where its scales are some.
Status Incoming::check_scales(const std::byte* row, size_t number) const {
  if (shape_.payload != ExchangePayload::kFp8) return Ok{};
  const int64_t group = kernels::find_bad_scale(row, shape_.hidden);
  if (group < 0) return Ok{};
  const int64_t begin = group * kernels::kFp8Group, end = std::min(shape_.hidden, begin + kernels::kFp8Group);
  return corrupt(
      fmt::format("the scale of columns [{}, {}) of row {} is not a finite positive number", begin, end, number));
}

ExchangeSource Incoming::source() const {
  return {static_cast<const std::byte*>(x_.data()), slots_.data(), int64_t(header_.total)};
}

Status Incoming::take_rows(const RowsHeader& header, std::string_view body, uint64_t answered) {
  const int64_t most =
      header.mode == uint32_t(ExchangeMode::kLowLatency) ? shape_.max_low_latency_tokens : shape_.max_tokens;
  if (int64_t(header.total) > most) return corrupt(fmt::format("{} rows, at most {}", header.total, most));
  if (header.round != answered + 1 || header.round == rows_round_) {
    return corrupt(fmt::format("rows of round {} after round {}", header.round, answered));
  }
  const bool begins = header.round != header_.round;
  const bool same = header.total == header_.total && header.step == header_.step && header.layer == header_.layer &&
                    header.mode == header_.mode;
  if (header.first != (begins ? 0 : num_rows_) || (!begins && !same)) {
    return corrupt(fmt::format("rows [{}, +{}) of {} out of order", header.first, header.count, header.total));
  }
  const size_t row_bytes = size_t(payload_row_bytes(shape_)), top_k = size_t(shape_.top_k);
  const size_t slot_bytes = top_k * sizeof(int32_t);
  if (body.size() != header.count * (slot_bytes + row_bytes)) {
    return corrupt(fmt::format("{} bytes for {} rows of {} and {} slots (payload {})", body.size(), header.count,
                               row_bytes, top_k, to_string(shape_.payload)));
  }
  const int32_t first_slot = rank_.value * shape_.slots_per_rank;
  for (size_t row = 0; row < header.count; ++row) {
    const size_t at = header.first + row;
    int32_t* slots = slots_.data() + at * top_k;
    std::memcpy(slots, body.data(), slot_bytes);
    for (size_t k = 0; k < top_k; ++k) {
      if (slots[k] != -1 && (slots[k] < first_slot || slots[k] >= first_slot + shape_.slots_per_rank)) {
        return corrupt(fmt::format("a row for slot {}, which is not rank {}'s", slots[k], rank_.value));
      }
    }
    std::byte* const to = static_cast<std::byte*>(x_.data()) + at * row_bytes;
    std::memcpy(to, body.data() + slot_bytes, row_bytes);
    RETURN_IF_ERROR(check_scales(to, at));
    body.remove_prefix(slot_bytes + row_bytes);
  }
  header_ = header;
  num_rows_ = header.first + header.count;
  if (num_rows_ == header.total) rows_round_ = header.round;
  return Ok{};
}

void Incoming::expect_results(uint64_t round, float* results, int64_t num_pairs) {
  expected_round_ = round;
  results_ = results;
  num_expected_ = uint32_t(num_pairs);
  num_results_ = 0;
}

Status Incoming::take_results(const ResultsHeader& header, std::string_view body) {
  if (header.round != expected_round_ || results_round_ == header.round || header.total != num_expected_ ||
      header.first != num_results_) {
    return corrupt(fmt::format("results [{}, +{}) of {} in round {}, wanted [{}, ...) of {} in round {}", header.first,
                               header.count, header.total, header.round, num_results_, num_expected_, expected_round_));
  }
  if (body.size() != header.count * size_t(shape_.hidden) * sizeof(float)) {
    return corrupt(fmt::format("{} bytes for {} results", body.size(), header.count));
  }
  if (!body.empty()) std::memcpy(results_ + int64_t(header.first) * shape_.hidden, body.data(), body.size());
  num_results_ += header.count;
  if (num_results_ == header.total) results_round_ = header.round;
  return Ok{};
}

}  // namespace tandem::parallel
