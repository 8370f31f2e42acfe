// From what every rank dispatched to the rows of this rank's slots: gathers each wanted row once and sorts the (token,
// choice) pairs by slot, in rank and token order. No waiting, no threads; all memory is taken at creation. Owner: the
// engine thread.
#pragma once

#include <cstdint>
#include <vector>

#include "device/buffer.h"
#include "parallel/expert_exchange.h"

namespace tandem::parallel {

// What one rank dispatched.
struct ExchangeSource {
  const std::byte* x = nullptr;    // [num_tokens, payload_row_bytes]
  const int32_t* slots = nullptr;  // [num_tokens, top_k] global slots; entries of other ranks' slots are skipped
  int64_t num_tokens = 0;
};

class Collector {
 public:
  Collector(const ExchangeShape& shape, Rank rank);

  void start(ExchangeMode mode);
  // The rows of one rank. Low-latency mode takes ranks in any order; normal mode in rank order.
  void add(int32_t source_rank, const ExchangeSource& source);
  // After every rank was added.
  ReceivedRows finish();

  // Where the result of a rank's pair [token * top_k + choice] lies in results, -1 where the slot is another rank's.
  const int32_t* row_of(int32_t source_rank) const {
    return row_of_.data() + size_t(source_rank) * size_t(shape_.max_tokens) * size_t(shape_.top_k);
  }
  const float* results() const { return static_cast<const float*>(results_.data()); }

  static int64_t bytes(const ExchangeShape& shape);

 private:
  struct Taken {
    ExchangeSource source;
    int64_t first_row = 0;
  };
  void take_row(const ExchangeSource& source, int64_t token, int64_t row);
  bool is_local(int32_t slot) const { return slot / shape_.slots_per_rank == rank_.value; }

  const ExchangeShape shape_;
  const Rank rank_;
  ExchangeMode mode_ = ExchangeMode::kNormal;
  int64_t num_rows_ = 0;  // normal mode: so far
  std::vector<Taken> taken_;
  device::Buffer rows_, results_;
  std::vector<int32_t> row_of_;                  // [num_ranks, max_tokens, top_k]
  std::vector<int32_t> slot_begin_, row_token_;  // of the sort
};

}  // namespace tandem::parallel
