// The part of resolve() about counting and moving experts: the balancer's configuration, spare slots and the placement
// at start. Reads the file that --init-expert-location names; touches nothing else.
#pragma once

#include <string>
#include <vector>

#include "app/resolve.h"

namespace tandem::app {

// Fills config.balancer, config.experts.payload (resolve_payload.h), config.experts.spare_slots and
// config.experts.placement. REQUIRES model, topology and dispatch, and a model with routed experts. A file that is not
// there goes to config.missing, everything else that is wrong to faults.
void resolve_expert_balancing(ResolvedConfig& config, std::vector<std::string>& faults);

}  // namespace tandem::app
