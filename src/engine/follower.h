// A rank of an attention tensor-parallel group that is not its first: it has no requests, schedules and samples
// nothing, and runs what the group's leader puts on the PlanBoard. It votes and switches experts as every rank does.
#pragma once

#include <functional>
#include <memory>

#include "engine/engine.h"

namespace tandem::engine {

// parts.plans: the group's. A request that comes here by mistake is answered with an error.
std::unique_ptr<Engine> make_follower(const EngineConfig& config, const EngineParts& parts,
                                      std::function<void(api::EngineEvent)> sink);

}  // namespace tandem::engine
