// A child of this program, started from the same executable; it dies with its parent. Move-only; the destructor ends
// it.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace tandem::app {

class ChildProcess {
 public:
  // args: command and flags ("launch_server", ...). Output goes to log_path, truncated first.
  static Result<ChildProcess> start(const std::vector<std::string>& args, const std::string& log_path);
  ~ChildProcess();
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;

  // The exit status, or 128 + signal; nothing while it runs.
  std::optional<int> poll();
  void terminate();  // SIGTERM: drain and leave
  void kill();       // SIGKILL
  pid_t pid() const { return pid_; }
  const std::string& log_path() const { return log_path_; }

 private:
  ChildProcess() = default;
  pid_t pid_ = -1;
  std::optional<int> status_;
  std::string log_path_;
};

}  // namespace tandem::app
