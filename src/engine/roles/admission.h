// What prefill and decode workers ask of a request before they take it in. Owner: the engine thread.
#pragma once

#include <unordered_map>

#include "engine/step/core.h"

namespace tandem::engine {

using RoomTable = std::unordered_map<uint64_t, Request*>;

struct Admitted {
  Request* request = nullptr;  // null: it was refused, and answered
  bool is_fake = false;        // nobody is on the other side; the room means nothing
  uint64_t room = 0;
};

// Refuses a request that cannot be served at all, has no room, or whose room is in `rooms`; ends a health check at once
// when the rank is busy anyway. The request is in state kNew.
Admitted admit_disaggregated(Core& core, api::EngineRequest input, scheduler::LifeKind kind, const RoomTable& rooms,
                             bool busy);

}  // namespace tandem::engine
