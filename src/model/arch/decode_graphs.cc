#include "model/arch/decode_graphs.h"

#include <algorithm>

#include "base/check.h"

namespace tandem::model {

void DecodeGraphs::add(int32_t rows, device::Graph graph) {
  CHECK(recorded_.empty() || recorded_.back().rows < rows);
  recorded_.push_back({rows, std::move(graph)});
}

const DecodeGraphs::Recorded* DecodeGraphs::find(const ForwardBatch& batch, const kv::KvStorage& cache) const {
  const size_t rows = batch.token_ids.size();
  const bool is_plain = batch.phase == Phase::kDecode && !batch.two_batches && rows > 0 &&
                        batch.sequences.size() == rows && batch.logit_rows.size() == rows;
  if (!is_alone_ && batch.exchange_mode != exchange_mode_) return nullptr;
  if (!is_plain || &cache != cache_ || batch.logits != logits_) return nullptr;
  const auto found = std::ranges::lower_bound(recorded_, int32_t(rows), {}, &Recorded::rows);
  if (found == recorded_.end() || (!fills_up_ && size_t(found->rows) != rows)) return nullptr;
  return &*found;
}

}  // namespace tandem::model
