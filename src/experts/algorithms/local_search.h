// Local search on the busiest rank of one layer. Pure; deterministic: among equally good steps the first in the order
// (slot of the busy rank, other slot) is taken, swaps before replica moves.
#pragma once

#include <cstdint>
#include <vector>

#include "experts/algorithms/layer_state.h"

namespace tandem::experts {

struct SearchLimits {
  int64_t limit = 0;              // stop when no rank's load is over this
  int32_t max_steps = 0;          // steps taken
  int32_t max_changed = -1;       // slots that hold another expert than in `original`; -1: no bound
  bool level_each_step = false;   // split the replicated experts anew after each step
  std::vector<int32_t> original;  // [num_slots], with max_changed >= 0
};

// Repeats on the busiest rank: the best swap of one of its replicas with a lighter one elsewhere, or the best overwrite
// of a replica elsewhere (of an expert that has another) by a replica of one of its experts, both experts split anew
// over their hosts. Best: the largest load of the ranks touched is least. Stops when no step helps. Creates no second
// replica of an expert on a rank. Where the state's parts are given they move with the replicas.
void search(LayerState& state, const SearchLimits& limits);

}  // namespace tandem::experts
