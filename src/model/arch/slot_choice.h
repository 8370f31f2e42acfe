// On the CPU: from the experts that the gate chose to the slots that hold them. Pure but for what it writes.
#pragma once

#include <cstdint>
#include <span>

#include "experts/dispatch.h"

namespace tandem::model {

struct SlotChoices {
  uint64_t seed = 0;        // of the draws, which differ by token and choice
  int64_t first_token = 0;  // of the batch
  int32_t top_k = 0;
  int32_t fakes_routing = 0;  // a benchmark aid, 0: no, else the number of experts: any top_k different ones, evenly
  int32_t* expert_counts = nullptr;  // [experts], added to; null: not wanted
  int32_t* slot_counts = nullptr;    // [slots of all ranks], added to; null: not wanted
};
// ids [tokens * top_k]: experts become slots in place.
void choose_slots(const experts::LayerDispatch& dispatch, const SlotChoices& how, std::span<int32_t> ids);

}  // namespace tandem::model
