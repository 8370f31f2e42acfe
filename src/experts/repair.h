// Adjusting a placement that is in use: by shares alone, by few moves, or by renumbering the ranks of a fresh plan.
// Pure, integers only; layers are independent. Any thread; values.
#pragma once

#include <cstdint>

#include "experts/placement.h"

namespace tandem::experts {

// All three REQUIRE a valid placement, and a load of the same layers and experts that passes check_problem(). Layers
// without load are left as they are.

enum class ShareGrain {
  kExact,       // for weighted and dynamic dispatch
  kWholeRanks,  // shares are multiples of 1/num_ranks, which static dispatch serves as they are
};

// The same slots; shares that spread the load as evenly as this placement can. Moves no weights. kExact: no rank
// gets more than the most loaded one had.
ExpertPlacement reshare(const ExpertLoad& load, const ExpertPlacement& current, const EpTopology& topology,
                        ShareGrain grain = ShareGrain::kExact);

struct RepairLimits {
  double target = 0.97;               // in (0, 1]: a layer this balanced is left alone
  int32_t max_changed_per_layer = 8;  // slots that get another expert
};

// reshare(), and in layers that stay under the target local search until they reach it or the budget is spent. The
// result is never less balanced than the current placement and may miss the target.
ExpertPlacement repair(const ExpertLoad& load, const ExpertPlacement& current, const EpTopology& topology,
                       const RepairLimits& limits);

enum class RelabelScope { kAnyRank, kWithinNode };

// The plan with the ranks of each layer renumbered so that as many slots as possible keep the expert that they hold
// now, and with common experts in their old slots. kWithinNode keeps each rank's content on its node, as hierarchical
// plans need. REQUIRES two valid placements of this topology.
ExpertPlacement relabel(const ExpertPlacement& plan, const ExpertPlacement& current, const EpTopology& topology,
                        RelabelScope scope);

// Slots whose expert differs, over all layers.
int64_t changed_slots(const ExpertPlacement& from, const ExpertPlacement& to);

}  // namespace tandem::experts
