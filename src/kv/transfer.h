// KvTransfer: the seam between processes for KV handover: small ordered messages, and reads of a peer's registered
// cache into this process's own (a writer could not be refused). Backends: transfers/ucx.cc (service),
// transfers/local.cc (one process, for tests and the combined demo of many instances). Thread: one owner, the transfer
// thread; nothing here blocks. Memory named by a read stays leased by the caller until poll says finished or failed,
// cancel or not.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/result.h"

namespace tandem::kv {

// Bytes [remote_offset, +bytes) of the peer's cache into [local_offset, +bytes) of ours. Both are checked against the
// region sizes before anything is posted.
struct CopyRange {
  int64_t remote_offset = 0, local_offset = 0, bytes = 0;
};

// What happened since the last call, in order.
struct PeerConnected {  // outbound: after connect(); inbound: a peer that called us, before its first message
  PeerId peer;
  uint64_t epoch;  // the other process's random epoch: a restarted peer has another
};
struct PeerLost {  // terminal for this PeerId: connection refused, reset, heartbeat missed, or disconnect()ed by it
  PeerId peer;
  std::string reason;
};
struct PeerMessage {
  PeerId peer;
  std::string bytes;
};
struct ReadFinished {  // one per post_read, also after cancel and after the peer was lost
  uint64_t read_id;
  Status status;
};
using TransferEvent = std::variant<PeerConnected, PeerLost, PeerMessage, ReadFinished>;

class KvTransfer {
 public:
  virtual ~KvTransfer() = default;
  // Starts a connection; PeerConnected or PeerLost follows within the backend's connect deadline (5 s).
  virtual PeerId connect(const std::string& host, uint16_t port, TimePoint now) = 0;
  // Queued and ordered per peer; lost silently only together with a PeerLost. A full send queue loses the peer.
  virtual void send(PeerId peer, std::string bytes) = 0;
  // read_id is the caller's, unique per process.
  virtual void post_read(uint64_t read_id, PeerId peer, std::span<const CopyRange> ranges) = 0;
  virtual void cancel_read(uint64_t read_id) = 0;
  virtual void disconnect(PeerId peer) = 0;
  // Progresses everything; appends at most a bounded number of events. Returns whether anything happened.
  virtual bool poll(TimePoint now, std::vector<TransferEvent>& events) = 0;
  // Where peers reach us ("host:port"), and how many bytes we have read so far.
  virtual std::string address() const = 0;
  virtual uint64_t bytes_read() const = 0;
};

#ifdef TANDEM_FAULTS
// What is done to some of the frames that bring a read's bytes: a bit flipped, bytes from elsewhere in this cache, the
// frame before once more, the frame itself twice. rate: the share of frames.
struct ReadFaultPlan {
  enum class Kind : uint8_t { kNone, kFlip, kOther, kStale, kTwice };
  Kind kind = Kind::kNone;
  double rate = 0;
};
Result<ReadFaultPlan> parse_read_faults(const std::string& text);  // "flip:0.1"
#endif

struct TransferOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 0;  // prefill: listens here (the bootstrap port); decode: 0, does not listen
  bool listen = false;
  uint64_t epoch = 0;  // random per process start
  Duration connect_timeout = std::chrono::seconds(5);
  Duration heartbeat_interval = std::chrono::seconds(5);  // SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL
  int32_t heartbeat_max_failures = 2;
  std::string secret = {};                // of the deployment: both sides prove the same one, or both have none
  std::vector<std::string> devices = {};  // network devices, as of transport::Context
  std::optional<int32_t> gpu = {};        // in whose memory the region lies; none: host memory
#ifdef TANDEM_FAULTS
  ReadFaultPlan read_faults = {};
#endif
};

// region: the cache that peers may read (prefill) or into which reads land (decode).
Result<std::unique_ptr<KvTransfer>> make_ucx_transfer(const TransferOptions& options, std::span<std::byte> region);

// In-process backend: transfers made with the same LocalFabric reach each other by "host:port".
class LocalFabric;
std::shared_ptr<LocalFabric> make_local_fabric();
std::unique_ptr<KvTransfer> make_local_transfer(std::shared_ptr<LocalFabric> fabric, const TransferOptions& options,
                                                std::span<std::byte> region);

}  // namespace tandem::kv
