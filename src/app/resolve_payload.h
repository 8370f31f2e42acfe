// The part of resolve() about what rows of the expert exchange travel as: --deepep-dispatch-dtype.
#pragma once

#include <string>
#include <vector>

#include "app/resolve.h"

namespace tandem::app {

// Fills config.experts.payload and gives the flag the value that was chosen, so that nodes agree on it. REQUIRES model
// and backend, and a model with routed experts. What cannot be goes to faults.
void resolve_payload(ResolvedConfig& config, std::vector<std::string>& faults);

}  // namespace tandem::app
