// Decode steps recorded for the GPU, one per batch size. Which of them a batch can run as: the next larger one, filled
// up. Owner: the engine thread.
#pragma once

#include <vector>

#include "device/gpu.h"
#include "model/model.h"

namespace tandem::model {

class DecodeGraphs {
 public:
  struct Recorded {
    int32_t rows = 0;
    device::Graph graph;
  };

  DecodeGraphs() = default;  // none
  // Of steps that use this cache and write these logits. is_alone: there are no other ranks, so any exchange mode does.
  DecodeGraphs(const DecodeRecording& what, bool is_alone, const kv::KvStorage& cache, const float* logits)
      : fills_up_(what.fills_up),
        is_alone_(is_alone),
        exchange_mode_(what.exchange_mode),
        cache_(&cache),
        logits_(logits) {}

  // Sizes ascending.
  void add(int32_t rows, device::Graph graph);
  // Null: the batch runs op by op.
  const Recorded* find(const ForwardBatch& batch, const kv::KvStorage& cache) const;

 private:
  bool fills_up_ = true, is_alone_ = true;
  parallel::ExchangeMode exchange_mode_ = parallel::ExchangeMode::kNormal;
  const kv::KvStorage* cache_ = nullptr;
  const float* logits_ = nullptr;
  std::vector<Recorded> recorded_;
};

}  // namespace tandem::model
