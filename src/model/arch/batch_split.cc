#include "model/arch/batch_split.h"

#include <cmath>
#include <cstdlib>

#include "base/check.h"

namespace tandem::model {

BatchSplitter::BatchSplitter(int64_t max_sequences, double threshold) : threshold_(threshold) {
  sequences_.reserve(size_t(max_sequences) + 1);  // one may be cut
}

// The first row of the second half.
int64_t BatchSplitter::choose_cut(const ForwardBatch& batch) const {
  const int64_t rows = int64_t(batch.token_ids.size());
  if (batch.phase == Phase::kDecode) return int64_t(batch.sequences.size()) / 2;
  int64_t best = 0;
  for (const kernels::SequenceSpan& sequence : batch.sequences) {
    const int64_t edge = sequence.first_row;
    if (std::abs(2 * edge - rows) < std::abs(2 * best - rows)) best = edge;
  }
  const int64_t smaller = std::min(best, rows - best);
  return double(smaller) < threshold_ * double(rows) ? rows / 2 : best;
}

std::span<const BatchPart> BatchSplitter::split(const ForwardBatch& batch) {
  const int64_t rows = int64_t(batch.token_ids.size());
  if (!batch.two_batches) {
    parts_[0] = {batch.sequences, 0, rows};
    return {parts_.data(), 1};
  }
  const int64_t cut = choose_cut(batch);
  CHECK(batch.sequences.size() < sequences_.capacity());
  sequences_.clear();
  size_t first_of_second = 0;
  for (const kernels::SequenceSpan& sequence : batch.sequences) {
    const int64_t before = std::min<int64_t>(std::max<int64_t>(0, cut - sequence.first_row), sequence.num_rows);
    if (before > 0) {
      sequences_.push_back({sequence.first_row, int32_t(before), sequence.prefix_len, sequence.block_table});
      first_of_second = sequences_.size();
    }
    if (before < sequence.num_rows) {
      sequences_.push_back({int32_t(std::max<int64_t>(sequence.first_row, cut) - cut),
                            int32_t(sequence.num_rows - before), int32_t(sequence.prefix_len + before),
                            sequence.block_table});
    }
  }
  const std::span<const kernels::SequenceSpan> all(sequences_);
  parts_ = {BatchPart{all.first(first_of_second), 0, cut}, BatchPart{all.subspan(first_of_second), cut, rows - cut}};
  return parts_;
}

}  // namespace tandem::model
