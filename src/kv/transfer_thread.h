// The transfer thread: owns a KvTransfer and exchanges values with the engine thread through two bounded queues.
// The simulation needs no thread: it takes the engine's commands and gives it events itself.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "base/queue.h"
#include "kv/transfer.h"
#include "profile/span.h"

namespace tandem::kv {

// Engine -> transfer. `connect_id` is the engine's; the answer carries it.
struct ConnectCommand {
  uint64_t connect_id;
  std::string host;
  uint16_t port;
};
struct SendCommand {
  PeerId peer;
  std::string bytes;
};
struct ReadCommand {
  uint64_t read_id;
  PeerId peer;
  std::vector<CopyRange> ranges;
};
struct CancelReadCommand {
  uint64_t read_id;
};
struct DisconnectCommand {
  PeerId peer;
};
using TransferCommand = std::variant<ConnectCommand, SendCommand, ReadCommand, CancelReadCommand, DisconnectCommand>;

// Transfer -> engine: a TransferEvent, or which PeerId a ConnectCommand got.
struct ConnectStarted {
  uint64_t connect_id;
  PeerId peer;
};
using TransferReport = std::variant<ConnectStarted, PeerConnected, PeerLost, PeerMessage, ReadFinished>;

// What an engine talks to. The thread version is below; tests and the simulation implement the same two queues.
struct TransferPort {
  explicit TransferPort(size_t capacity) : commands(capacity), reports(capacity) {}
  BoundedQueue<TransferCommand> commands;
  BoundedQueue<TransferReport> reports;
};

class TransferThread {
 public:
  // on_report: called on the transfer thread after reports were queued; must only wake the engine.
  // spans: where reads and the transfer's work are recorded; null: nowhere. Borrowed.
  TransferThread(std::unique_ptr<KvTransfer> transfer, TransferPort& port, const Clock& clock,
                 std::function<void()> on_report, profile::SharedRecorder* spans = nullptr);
  ~TransferThread();  // stops and joins

  std::string address() const;
  uint64_t bytes_read() const;  // any thread

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tandem::kv
