// Where experts live: which logical expert each slot (a physical place in some rank's weight memory) holds, per layer.
// Values; any thread. Slots are numbered globally: rank p / slots_per_rank owns slot p, so a rank owns a contiguous run
// of slots and a node a contiguous run of ranks. Several slots of one expert are its replicas and hold the same
// weights.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace tandem::experts {

// The ranks of one expert-parallel group.
struct EpTopology {
  int32_t num_nodes = 1;  // divides num_ranks
  int32_t num_ranks = 1;
  int32_t slots_per_rank = 0;  // per layer

  int32_t num_slots() const { return num_ranks * slots_per_rank; }
  int32_t rank_of(int32_t slot) const { return slot / slots_per_rank; }
  int32_t ranks_per_node() const { return num_ranks / num_nodes; }
  int32_t node_of_rank(int32_t rank) const { return rank / ranks_per_node(); }
  int32_t node_of(int32_t slot) const { return node_of_rank(rank_of(slot)); }
  bool operator==(const EpTopology&) const = default;
};

// How many (token, choice) pairs each logical expert got, per layer. Layers are the model's: dense ones have rows of
// zeros.
struct ExpertLoad {
  int32_t num_layers = 0, num_logical = 0;
  std::vector<int64_t> tokens;  // [num_layers, num_logical]

  std::span<const int64_t> layer(int32_t l) const {
    return {tokens.data() + size_t(l) * size_t(num_logical), size_t(num_logical)};
  }
  bool operator==(const ExpertLoad&) const = default;
};

// Shares are in parts of this, so that plans are integers and the same everywhere.
inline constexpr int32_t kShareUnit = 65536;

struct ExpertPlacement {
  int32_t num_layers = 0, num_logical = 0, num_slots = 0;
  std::vector<int32_t> logical_of_slot;  // [num_layers, num_slots]
  // [num_layers, num_slots] part of its expert's tokens that a slot should get, of kShareUnit; the shares of one expert
  // add up to kShareUnit. Empty: equal shares.
  std::vector<int32_t> share;

  std::span<const int32_t> layer(int32_t l) const {
    return {logical_of_slot.data() + size_t(l) * size_t(num_slots), size_t(num_slots)};
  }
  bool operator==(const ExpertPlacement&) const = default;
};

// The inverse of one layer: the slots of each expert, ascending.
struct SlotsOfExperts {
  std::vector<int32_t> begin;  // [num_logical + 1] into slot
  std::vector<int32_t> slot;   // [num_slots]

  std::span<const int32_t> of(int32_t expert) const {
    return {slot.data() + begin[size_t(expert)], size_t(begin[size_t(expert) + 1] - begin[size_t(expert)])};
  }
};
SlotsOfExperts slots_of_experts(const ExpertPlacement& placement, int32_t layer);

// The share of each slot of a layer, [num_slots]. Where the placement gives none, an expert's slots get equal parts,
// and what does not divide goes to the lowest slots, one part each.
std::vector<int32_t> shares_of_slots(const ExpertPlacement& placement, int32_t layer);

// Of one layer's experts and shares; empty shares hash as the equal ones that they stand for. For ranks to compare what
// they hold. Source: FNV-1a, 64 bits.
uint64_t layer_hash(const ExpertPlacement& placement, int32_t layer);

// Slot i holds expert i mod num_logical, in every layer. REQUIRES num_slots >= num_logical.
ExpertPlacement trivial_placement(int32_t num_layers, int32_t num_logical, int32_t num_slots);

// kInvalidInput with layer, slot and expert of the first fault: sizes, ids out of range, an expert without a slot,
// shares that are negative or do not add up, slots that do not divide over the ranks.
Status validate(const ExpertPlacement& placement, const EpTopology& topology);

}  // namespace tandem::experts
