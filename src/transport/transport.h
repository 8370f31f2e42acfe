// The room around UCX: ordered small messages between processes and one-sided reads of a peer's registered memory.
// Everything is post and poll: progress() does all work and hands out events; no call waits for a peer (but resolve(),
// which may ask a name server). Peer death, resets and refused connections are events, never the end of this process.
// Transports: TCP (and self). Shared memory cannot report a dead peer in UCX 1.13 and stays out.
// Trust: every connection begins with a greeting that proves the deployment's secret, where one is set (Credentials).
// Nothing is encrypted, and UCX's own port checks nobody: docs/security.md.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace tandem::transport {

// A resolved socket address, as large as an IPv6 one.
struct SocketAddress {
  std::vector<std::byte> bytes;  // a sockaddr
};
// Numeric addresses and "localhost" are answered at once, other names by getaddrinfo, which may block for seconds.
Result<SocketAddress> resolve(const std::string& host, uint16_t port);
// The address of this machine, in numbers, from which it would talk to the other one. Sends nothing.
Result<std::string> local_host_towards(const SocketAddress& other);

// A connection, inbound or outbound, as numbered by its Worker. Never reused.
struct EndpointId {
  uint64_t value = 0;
  auto operator<=>(const EndpointId&) const = default;
};

// What happened since the last progress(), in order per endpoint.
struct EndpointAccepted {  // somebody connected to our listener and has greeted; who does not is closed and logged
  EndpointId endpoint;
};
struct EndpointFailed {  // terminal: refused, unreachable, reset, or the peer died; already closed
  EndpointId endpoint;
  std::string reason;
  bool not_greeted = false;  // the two do not belong together: another try will not help
};
struct MessageArrived {
  EndpointId endpoint;
  std::string bytes;
};
struct GetFinished {  // one per accepted get(); from now on UCX does not touch the local memory
  uint64_t get_id;    // the caller's, need not be unique
  uint64_t bytes;     // asked for
  Status status;
};
using Event = std::variant<EndpointAccepted, EndpointFailed, MessageArrived, GetFinished>;

inline constexpr size_t kMaxMessageBytes = 60 * 1024;  // one send; longer ones are the caller's to cut
inline constexpr size_t kMaxKeyBytes = 1024;

// What this process shows to whom it connects with, and asks of them.
struct Credentials {
  std::string secret = {};  // of the deployment; empty: none is asked, and a peer that has one is refused
  uint64_t epoch = 0;       // of this process's life; the other side learns it, proved where there is a secret
};
inline constexpr size_t kMinSecretBytes = 16, kMaxSecretBytes = 4096;

// What connections may run over, as UCX names it: "tcp" on "eth0".
struct NetworkDevice {
  std::string transport, name;
};
std::string list_of(const std::vector<NetworkDevice>& devices);  // "tcp/eth0, tcp/lo", or "none"

// UCX's context with one registered memory region (may be empty). Outlives its workers.
class Context {
 public:
  // region: what peers that got key() may read and where our own reads land. Borrowed; outlives the context.
  // can_wait: its workers can park their thread (Worker::wait).
  // own: for all its workers' connections.
  // devices: the only network devices to use: interfaces, or RDMA NICs, which stand for their interfaces; empty:
  // the one by which the other side was reached.
  // Errors: kInvalidInput where one of them is not there, with those that are.
  static Result<std::unique_ptr<Context>> create(std::span<std::byte> region, bool can_wait = false,
                                                 const std::vector<std::string>& devices = {},
                                                 const Credentials& own = {});
  ~Context();

  std::span<std::byte> region() const;
  const std::string& key() const;  // opaque; for the peer's import_region()
  std::vector<NetworkDevice> devices() const;

  struct State;
  State& state() { return *state_; }

 private:
  explicit Context(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// One UCX worker: one owner thread, which makes every call.
class Worker {
 public:
  static Result<std::unique_ptr<Worker>> create(Context& context);
  ~Worker();  // closes everything; memory of unfinished gets is free afterwards

  // Accepts connections from now on. port 0: any free one. Returns the port.
  Result<uint16_t> listen(const std::string& host, uint16_t port);
  // The connection is usable at once; whether anybody is there shows in events.
  Result<EndpointId> connect(const SocketAddress& address);
  // Forgets the endpoint: no further events but GetFinished of its gets. linger: leaves the other side up to a second
  // to read what was sent last and to close first; otherwise that may be lost.
  void close(EndpointId endpoint, bool linger);

  // At most kMaxMessageBytes (CHECK). Ordered per endpoint. A no-op on unknown endpoints.
  void send(EndpointId endpoint, std::string bytes);
  // The Credentials::epoch of the other side; 0 while it has not greeted.
  uint64_t peer_epoch(EndpointId endpoint) const;
  // Bytes of sends that UCX has not taken yet.
  size_t queued_bytes(EndpointId endpoint) const;

  // Names the peer's region: key is its Context::key(). kInvalidInput where UCX does not understand it.
  Status import_region(EndpointId endpoint, uint64_t base, uint64_t bytes, std::string_view key);
  // Not over TCP between processes that may die: UCX 1.13 emulates it there, and a reader that dies in the middle
  // aborts the process it reads from (docs/decisions/0002-reads-over-ucx-tcp.md). For transports with real RMA.
  // Reads [remote_offset, +local.size()) of the imported region. Errors (bounds, unknown endpoint, refused by UCX) mean
  // that no GetFinished follows.
  Status get(uint64_t get_id, EndpointId endpoint, uint64_t remote_offset, std::span<std::byte> local);

  // A bounded amount of work. Returns whether anything happened.
  bool progress(TimePoint now, std::vector<Event>& events);
  // Parks the thread until progress() may have something to do, wake() was called or the timeout passed: false only
  // then. REQUIRES a context that can wait.
  bool wait(Duration timeout);
  // Any thread: ends the current or the next wait early. REQUIRES a context that can wait.
  void wake();

  struct State;

 private:
  explicit Worker(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace tandem::transport
