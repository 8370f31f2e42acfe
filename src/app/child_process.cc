#include "app/child_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace tandem::app {

Result<ChildProcess> ChildProcess::start(const std::vector<std::string>& args, const std::string& log_path) {
  std::vector<char*> argv = {const_cast<char*>("tandem")};
  for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  int log = open(log_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (log < 0) return invalid_input(fmt::format("{}: cannot write: {}", log_path, std::strerror(errno)));
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) {
    close(log);
    return exhausted(fmt::format("cannot start a process: {}", std::strerror(errno)));
  }
  if (pid == 0) {
    setpgid(0, 0);  // a Ctrl-C at the terminal reaches the parent only, which drains its children in order
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execv("/proc/self/exe", argv.data());
    _exit(127);
  }
  close(log);
  ChildProcess child;
  child.pid_ = pid;
  child.log_path_ = log_path;
  return child;
}

ChildProcess::~ChildProcess() {
  if (pid_ < 0 || poll()) return;
  kill();
  int status = 0;
  waitpid(pid_, &status, 0);
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), status_(other.status_), log_path_(std::move(other.log_path_)) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(status_, other.status_);
  std::swap(log_path_, other.log_path_);
  return *this;
}

std::optional<int> ChildProcess::poll() {
  if (pid_ < 0 || status_) return status_;
  int status = 0;
  if (waitpid(pid_, &status, WNOHANG) != pid_) return std::nullopt;
  status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return status_;
}

void ChildProcess::terminate() {
  if (pid_ > 0 && !poll()) ::kill(pid_, SIGTERM);
}

void ChildProcess::kill() {
  if (pid_ > 0 && !poll()) ::kill(pid_, SIGKILL);
}

}  // namespace tandem::app
