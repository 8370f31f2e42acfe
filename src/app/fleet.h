// Fleet: prefill servers, decode servers and a router as children of this process, on this machine. What `tandem up`
// and `tandem reproduce` start. One thread owns it; the destructor ends every child.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "app/child_process.h"
#include "base/clock.h"
#include "base/result.h"

namespace tandem::app {

struct FleetConfig {
  std::string host = "127.0.0.1";
  std::string model;             // Hugging Face directory; empty: the embedded model
  std::optional<uint16_t> port;  // of the router; absent: 30000, or a free one when that is taken
  int64_t num_prefill = 1, num_decode = 1;
  std::optional<int64_t> num_threads;                               // per server; absent: the cores shared out
  std::vector<std::string> server_args, prefill_args, decode_args;  // more launch_server flags: of all, of one role
  std::string log_dir;                                              // empty: a folder removed at the end
  Duration ready_timeout = std::chrono::seconds(600);
  bool quiet = false;  // no line per server
};

class Fleet {
 public:
  explicit Fleet(FleetConfig config);
  ~Fleet();
  Fleet(const Fleet&) = delete;
  Fleet& operator=(const Fleet&) = delete;

  // Returns when all are ready. Errors: a taken port, a child that ended (with its last lines), the timeout, Ctrl-C.
  Status start();
  // Router first, so that nothing new arrives, then the servers; who is left after 4.8 s is killed. Whether all left by
  // themselves with status 0.
  bool stop();
  // The first server that has ended by itself, with its last lines.
  std::optional<std::string> dead();

  const std::string& url() const;  // of the router; after start()
  const std::string& log_dir() const { return log_dir_; }
  const std::string& model() const { return model_; }
  // The command lines of all children, as a user would type them.
  const std::vector<std::string>& commands() const { return commands_; }
  void keep_logs() { remove_logs_ = false; }

 private:
  struct Server {
    std::string name;
    std::string url;
    ChildProcess process;
  };
  Status prepare();
  Status launch(const std::string& name, const std::string& url, const std::vector<std::string>& args);
  Result<std::string> start_server(const std::string& role, const std::string& name, uint16_t kv_port);
  Status wait_ready(Server& server, TimePoint begin);

  const FleetConfig config_;
  const SystemClock clock_;
  std::string model_, log_dir_;
  bool remove_logs_ = false;
  uint16_t port_ = 0;
  std::vector<Server> servers_;
  std::vector<std::string> commands_;
};

}  // namespace tandem::app
