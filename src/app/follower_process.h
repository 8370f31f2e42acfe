// The process of a node other than 0: its ranks take their requests from node 0; HTTP answers only that it lives.
#pragma once

#include <memory>

#include "app/server_process.h"

namespace tandem::app {

// As ServerProcess::start().
Result<std::unique_ptr<ServerProcess>> start_follower(ResolvedConfig config);

}  // namespace tandem::app
