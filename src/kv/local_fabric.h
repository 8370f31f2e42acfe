// LocalFabric: where the transfers of one process find each other by "host:port", and where a test breaks them. An
// instance is named by what its KvTransfer::address() says. Any thread: one lock around everything, copies included, so
// that an instance can vanish at any moment.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kv/transfer.h"

namespace tandem::kv {

class LocalFabric {
 public:
  LocalFabric();
  ~LocalFabric();

  // As kill -9: the instance never does anything again, its peers lose it at their next poll, its port is free.
  void kill(const std::string& address);
  // As SIGSTOP: it neither sends nor answers nor serves reads; peers lose it by missed heartbeats unless it thaws.
  void freeze(const std::string& address, bool frozen);
  // Reads that this instance posts stay in flight until released.
  void hold_reads(const std::string& address, bool held);
  // The next `count` reads that this instance posts fail with kPeerLost; the connection stays.
  void fail_reads(const std::string& address, int32_t count);

  struct State;  // private to the backend

 private:
  friend class LocalTransfer;
  std::unique_ptr<State> state_;
};

}  // namespace tandem::kv
