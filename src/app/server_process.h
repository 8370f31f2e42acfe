// ServerProcess: the objects and threads of one launch_server process, built in order and taken down in reverse.
// Owner: the main thread, which also runs the HTTP loop.
#pragma once

#include <memory>

#include "app/memory_plan.h"
#include "app/resolve.h"
#include "base/result.h"

namespace tandem::app {

class ServerProcess {
 public:
  // Plans memory, meets the other nodes, loads the model, opens the KV port and the HTTP port. Errors name file, port,
  // flag or node.
  static Result<std::unique_ptr<ServerProcess>> start(ResolvedConfig config);
  virtual ~ServerProcess() = default;

  // Serves until SIGINT or SIGTERM, drains, and returns the exit status.
  virtual int run() = 0;
};

// What the engines' configuration takes from the plan and the environment, and this process's random numbers.
void settle_engine(ResolvedConfig& config, const MemoryPlan& plan);

}  // namespace tandem::app
