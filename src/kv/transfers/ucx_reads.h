// Reads under way over one transport::Worker: cuts ranges into pieces, keeps a bounded number of them in UCX per peer,
// and finishes a read exactly once, when UCX holds none of its pieces any more. Owner: the transfer thread.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <unordered_map>
#include <vector>

#include "kv/transfer.h"
#include "transport/transport.h"

namespace tandem::kv {

class UcxReads {
 public:
  UcxReads(transport::Worker& worker, std::span<std::byte> region) : worker_(worker), region_(region) {}

  // Ranges are checked by the caller.
  void post(uint64_t read_id, PeerId peer, transport::EndpointId endpoint, std::span<const CopyRange> ranges);
  // Ends with `error` as soon as nothing of it is in UCX; pieces not posted yet never are. Unknown ids: no-op.
  void fail(uint64_t read_id, const Error& error);
  void fail_peer(PeerId peer, const Error& error);
  // A read that never started.
  void refuse(uint64_t read_id, const Error& error) { finished_.push_back({read_id, error}); }

  void on_get(const transport::GetFinished& get);
  // Posts what fits and appends what finished. Returns whether anything did.
  bool advance(std::vector<TransferEvent>& events);

  uint64_t bytes_read() const { return bytes_read_; }

 private:
  struct Read {
    PeerId peer;
    transport::EndpointId endpoint;
    std::vector<CopyRange> ranges;
    size_t next_range = 0;    // the piece to post next
    int64_t next_offset = 0;  // inside that range
    int32_t in_flight = 0;
    Status status = Ok{};
  };
  struct Lane {                    // per peer
    std::deque<uint64_t> waiting;  // reads with pieces left to post, oldest first
    int32_t in_flight = 0;
    int64_t in_flight_bytes = 0;
  };

  bool post_pieces(Lane& lane);
  bool post_piece(uint64_t read_id, Read& read, Lane& lane);
  void finish_if_done(uint64_t read_id);

  transport::Worker& worker_;
  const std::span<std::byte> region_;
  std::unordered_map<uint64_t, Read> reads_;
  std::map<uint64_t, Lane> lanes_;  // by peer; only while there is something to do
  std::vector<ReadFinished> finished_;
  uint64_t bytes_read_ = 0;
};

}  // namespace tandem::kv
