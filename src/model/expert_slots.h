// ExpertSlots: the routed experts' weights on one rank. One slab of equal places holds every layer's slots and a few
// spares; a table per layer says which place each slot uses now. A placement changes by filling spare places in the
// background and then exchanging a layer's table between two steps: no weight is copied then, and what the layer no
// longer uses has become spare. Private to the rank on the CPU too, so that dispatch and moves are real work
// everywhere. Threads: the engine thread runs the model and switches; a mover may write places that no table names.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "device/buffer.h"
#include "experts/dispatch.h"
#include "experts/placement.h"
#include "kernels/moe.h"

namespace tandem::model {

// A layer's placement as one rank sees it.
struct LayerExperts {
  std::vector<int32_t> place_of_slot;    // [slots_per_rank]
  std::vector<int32_t> logical_of_slot;  // [num_slots] of all ranks
  experts::LayerDispatch dispatch;       // where this rank sends its tokens
};

class ExpertSlots {
 public:
  struct Shape {
    std::vector<int32_t> expert_layers;  // model layers with routed experts, ascending
    int32_t num_layers = 0;
    int32_t slots_per_rank = 0, num_spares = 0;
  };
  // form: any packed expert of the model; all of them have its form.
  ExpertSlots(Shape shape, const kernels::ExpertWeights& form, device::Device device = device::Device::kCpu);
  ExpertSlots(const ExpertSlots&) = delete;
  ExpertSlots& operator=(const ExpertSlots&) = delete;

  const Shape& shape() const { return shape_; }
  int32_t num_places() const { return int32_t(weights_.size()); }
  bool has_experts(int32_t layer) const { return !layers_[size_t(layer)].place_of_slot.empty(); }
  // At the start slot s of the i-th expert layer has place i * slots_per_rank + s; the spares come last.
  const LayerExperts& layer(int32_t layer) const { return layers_[size_t(layer)]; }
  // Rises with every switch_layer(); and what it was at the layer's last one.
  uint64_t num_switches() const { return num_switches_; }
  uint64_t switched_at(int32_t layer) const { return switched_at_[size_t(layer)]; }
  // By slot of this rank; changes with switch_layer().
  std::span<const kernels::ExpertWeights* const> weights(int32_t layer) const {
    return {table_.data() + size_t(layer) * size_t(shape_.slots_per_rank), size_t(shape_.slots_per_rank)};
  }

  const kernels::ExpertWeights& weights_of_place(int32_t place) const { return weights_[size_t(place)]; }
  std::span<std::byte> place(int32_t place) const;
  // Of the bytes that were put there with fill(), or set by whoever copied them. On a GPU it is digest_of_words(), and
  // fill() notes it only where there are spare places, without which nobody asks.
  uint64_t digest(int32_t place) const { return digests_[place]; }
  void set_digest(int32_t place, uint64_t digest) { digests_[place] = digest; }
  // All places and, behind them, their digests: the same offsets on every rank, so that other nodes can read both. On
  // the CPU only; a GPU's digests stay in host memory.
  std::span<std::byte> slab() const;
  int64_t place_bytes() const { return int64_t(place_bytes_); }
  int64_t place_offset(int32_t place) const { return place * int64_t(place_bytes_); }
  int64_t digest_offset(int32_t place) const { return place_offset(num_places()) + place * int64_t(sizeof(uint64_t)); }
  // Copies a packed expert into a place and notes its digest. kInvalidInput where its form is another.
  Status fill(int32_t place, const kernels::ExpertWeights& expert);

  // Before the first step: what layer() says of global slots and dispatch.
  void set_placement(int32_t layer, std::vector<int32_t> logical_of_slot, experts::LayerDispatch dispatch);
  // Between two steps: exchanges the layer's table with `next`, which then holds the old one.
  void switch_layer(int32_t layer, LayerExperts& next);

 private:
  void point(int32_t layer);

  const Shape shape_;
  size_t place_bytes_ = 0;
  device::Buffer slab_;
  std::vector<kernels::ExpertWeights> weights_;  // by place
  device::Buffer gpu_digests_;                   // where a GPU computes them while loading, by place
  std::vector<uint64_t> host_digests_;           // of a slab on a GPU
  uint64_t* digests_ = nullptr;                  // by place; the end of the slab, or host_digests_
  uint64_t num_switches_ = 0;
  std::vector<uint64_t> switched_at_;                 // by model layer
  std::vector<LayerExperts> layers_;                  // by model layer; empty for dense ones
  std::vector<const kernels::ExpertWeights*> table_;  // [num_layers, slots_per_rank]
};

}  // namespace tandem::model
