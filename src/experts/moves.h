// From one placement to the next: which bytes go where, layer by layer. Pure. Any thread; values.
//
// The plan is made for a mover that reads each incoming expert into a spare place of its rank's slab and leaves every
// slot of the old placement alone until the layer switches on all ranks. So chains (a to b, b to c) and cycles need no
// order, and a slot may be read and replaced by the same plan. At the switch a rank's table points the slots at the
// places that were read into, and the places that no slot needs any more are the new spares.
#pragma once

#include <cstdint>
#include <vector>

#include "experts/placement.h"

namespace tandem::experts {

enum class MovePath : uint8_t {
  kRename,     // the rank has the bytes and from_slot gives them up: only the table changes, no spare place is used
  kSameRank,   // a copy within the rank
  kSameNode,   // from another rank of the node
  kCrossNode,  // over the network; at most one per expert and node
};

struct ExpertMove {
  int32_t layer = 0;
  int32_t logical = 0;
  int32_t to_slot = 0;    // holds `logical` after the switch, held another expert before
  int32_t from_slot = 0;  // global slot whose bytes are read
  MovePath path = MovePath::kRename;
  // 0: from_slot is a slot of the old placement. Above: from_slot is the to_slot of a move of the stage before, read
  // from the place it was read into, once it is there.
  int32_t stage = 0;

  bool operator==(const ExpertMove&) const = default;
};

// How many experts each rank has been asked to send, over all layers planned so far; equal sources take turns by it.
using SentExperts = std::vector<int64_t>;  // [num_ranks]

// One move for each slot whose expert changes, stages ascending, then to_slot. Sources: the own rank, then the node,
// then any rank; among equals the rank that sends least so far, then the lower. What no rank of a node has is fetched
// once for the node and copied from there. REQUIRES valid placements of this topology.
std::vector<ExpertMove> plan_moves(const ExpertPlacement& from, const ExpertPlacement& to, const EpTopology& topology,
                                   int32_t layer, SentExperts& sent);

// One switch of a layer: its rows afterwards and the moves that lead there.
struct LayerStep {
  std::vector<int32_t> logical_of_slot;  // [num_slots]
  std::vector<int32_t> share;            // [num_slots]
  std::vector<ExpertMove> moves;
};

// The way from `from` to `to` in steps in which no rank needs more than max_incoming spare places. After each step the
// layer is a valid placement by itself; the last is that of `to`. Empty if the layer does not change; one step without
// moves if only shares do. An expert that is on its way has equal shares. Where a long cycle does not fit into one step
// its experts are exchanged in pairs, which moves some of them twice. REQUIRES max_incoming >= 1.
std::vector<LayerStep> plan_layer_steps(const ExpertPlacement& from, const ExpertPlacement& to,
                                        const EpTopology& topology, int32_t layer, int32_t max_incoming);

}  // namespace tandem::experts
