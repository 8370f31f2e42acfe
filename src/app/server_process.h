// ServerProcess: the objects and threads of one launch_server process, built in order and taken down in reverse.
// Owner: the main thread, which also runs the HTTP loop.
#pragma once

#include <memory>

#include "app/resolve.h"
#include "base/result.h"

namespace tandem::app {

class ServerProcess {
 public:
  // Plans memory, loads the model, opens the KV port and the HTTP port. Errors name file, port or flag.
  static Result<std::unique_ptr<ServerProcess>> start(ResolvedConfig config);
  virtual ~ServerProcess() = default;

  // Serves until SIGINT or SIGTERM, drains, and returns the exit status.
  virtual int run() = 0;
};

}  // namespace tandem::app
