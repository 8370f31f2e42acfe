// One number for a whole placement, for nodes to compare what they hold. Pure.
#pragma once

#include <cstdint>

#include "experts/placement.h"

namespace tandem::experts {

// FNV-1a over layer_hash() of all layers. REQUIRES a valid placement.
inline uint64_t placement_hash(const ExpertPlacement& placement) {
  uint64_t hash = 0xCBF29CE484222325;
  for (int32_t layer = 0; layer < placement.num_layers; ++layer) {
    hash = (hash ^ layer_hash(placement, layer)) * 0x100000001B3;
  }
  return hash;
}

}  // namespace tandem::experts
