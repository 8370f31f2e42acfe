// How a step is cut into two halves for two-batch overlap: decode by requests, prefill by tokens. Pure but for its
// memory, which is taken at creation. Owner: the engine thread.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "model/model.h"

namespace tandem::model {

// Rows [first_row, first_row + rows) of a batch. The spans' first_row counts from there.
struct BatchPart {
  std::span<const kernels::SequenceSpan> sequences;
  int64_t first_row = 0, rows = 0;
};

class BatchSplitter {
 public:
  // threshold: share of the tokens below which the smaller half of a prefill step is not accepted; at most 0.5.
  BatchSplitter(int64_t max_sequences, double threshold);

  // One part, or two where batch.two_batches says so (both may be empty). Valid until the next call. Decode: half of
  // the requests each. Prefill: cut between two sequences where that balances the tokens, else inside one, whose second
  // piece then has the first in its prefix.
  std::span<const BatchPart> split(const ForwardBatch& batch);

 private:
  int64_t choose_cut(const ForwardBatch& batch) const;

  const double threshold_;
  std::vector<kernels::SequenceSpan> sequences_;
  std::array<BatchPart, 2> parts_;
};

}  // namespace tandem::model
