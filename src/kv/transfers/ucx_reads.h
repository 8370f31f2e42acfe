// Reads under way: packs ranges into requests, keeps a bounded number of bytes asked for per peer, scatters the answers
// and finishes each read exactly once. Only on_data() writes to the region, so a read that ended is never written
// again. Owner: the transfer thread.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kv/transfer.h"
#include "kv/transfers/link_wire.h"

namespace tandem::kv {

class UcxReads {
 public:
  using SendRequest = std::function<void(PeerId, const ReadRequestFrame&)>;

  // on_gpu: where the region lies.
  UcxReads(std::span<std::byte> region, bool on_gpu, SendRequest send)
      : region_(region), on_gpu_(on_gpu), send_(std::move(send)) {}

  // Ranges are checked by the caller.
  void post(uint64_t read_id, PeerId peer, std::span<const CopyRange> ranges);
  // Ends now with `error`; what still arrives of it is dropped. Unknown ids: no-op.
  void fail(uint64_t read_id, const Error& error);
  // Also forgets what the peer was asked for.
  void fail_peer(PeerId peer, const Error& error);
  // A read that never started.
  void refuse(uint64_t read_id, const Error& error) { finished_.push_back({read_id, error}); }

  // False: nobody asked for that (much).
  bool on_data(PeerId peer, uint64_t tag, std::string_view bytes);
  // Sends what fits and appends what finished. Returns whether anything did.
  bool advance(std::vector<TransferEvent>& events);

  uint64_t bytes_read() const { return bytes_read_; }

 private:
  struct Read {
    PeerId peer;
    std::vector<CopyRange> ranges;
    size_t next_range = 0;    // to ask for next
    int64_t next_offset = 0;  // inside that range
    int32_t requests = 0;     // under way
  };
  struct Part {
    int64_t local_offset, bytes;
  };
  struct Request {
    uint64_t read_id = 0;
    bool dropped = false;    // its read has ended
    std::deque<Part> parts;  // still to come, in order
  };
  struct Lane {                            // per peer
    std::deque<uint64_t> waiting;          // reads with something left to ask for, oldest first
    std::map<uint64_t, Request> requests;  // under way, by tag
    int64_t bytes = 0;                     // asked for and not come
  };

  bool ask(PeerId peer, Lane& lane);
  void send_request(uint64_t read_id, Read& read, Lane& lane);
  void end(uint64_t read_id, Status status);

  const std::span<std::byte> region_;
  const bool on_gpu_;
  const SendRequest send_;
  uint64_t next_tag_ = 1;
  std::unordered_map<uint64_t, Read> reads_;
  std::map<uint64_t, Lane> lanes_;  // by peer; only while there is something to do
  std::vector<ReadFinished> finished_;
  uint64_t bytes_read_ = 0;
};

}  // namespace tandem::kv
