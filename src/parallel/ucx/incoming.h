// What one rank of another node sends to this rank on one channel: its rows, checked and laid out as an ExchangeSource,
// and the results of what we sent it. The protocol keeps the two sides within one round, so one set of buffers does: a
// rank dispatches round r+1 only when it has our results of round r, and we send those after we are done with its rows.
// Owner: the engine thread.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "device/buffer.h"
#include "parallel/exchange/collect.h"
#include "parallel/ucx/wire.h"

namespace tandem::parallel {

class Incoming {
 public:
  Incoming(const ExchangeShape& shape, Rank rank);
  static int64_t bytes(const ExchangeShape& shape);

  // answered: rounds of this channel that we have answered.
  Status take_rows(const RowsHeader& header, std::string_view body, uint64_t answered);
  bool has_rows(uint64_t round) const { return rows_round_ >= round; }
  ExchangeSource source() const;
  ExchangeTag tag() const { return {header_.step, int32_t(header_.layer)}; }
  ExchangeMode mode() const { return ExchangeMode(header_.mode); }

  // We sent it so many pairs of this round; results: where theirs go, [pairs, hidden].
  void expect_results(uint64_t round, float* results, int64_t num_pairs);
  Status take_results(const ResultsHeader& header, std::string_view body);
  bool has_results(uint64_t round) const { return results_round_ >= round; }
  const float* results() const { return results_; }

 private:
  Status check_scales(const std::byte* row, size_t number) const;

  const ExchangeShape shape_;
  const Rank rank_;  // ours
  device::Buffer x_;
  std::vector<int32_t> slots_;
  RowsHeader header_;         // of the round that comes in or came last
  uint32_t num_rows_ = 0;     // of it so far
  uint64_t rows_round_ = 0;   // whole rounds
  float* results_ = nullptr;  // borrowed
  uint64_t expected_round_ = 0, results_round_ = 0;
  uint32_t num_expected_ = 0, num_results_ = 0;
};

}  // namespace tandem::parallel
