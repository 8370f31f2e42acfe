// The part of resolve() about what --device cuda does not have yet.
#pragma once

#include "app/resolve.h"

namespace tandem::app {

// Each flag that a GPU's rank cannot follow goes to config.refusals. REQUIRES ranges checked.
void refuse_on_gpu(ResolvedConfig& config);

}  // namespace tandem::app
