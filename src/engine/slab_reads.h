// SlabReads: the expert slabs of this node's ranks, open for reading to the ranks of other nodes, and reads of theirs
// into ours. The receiver pulls, so the owner needs no schedule and no bytes arrive that nobody asked for; the frames
// and the reason for them are those of KV reads (docs/decisions/0002). Each rank has a transfer of its own, because a
// transfer reads into its own region only. Connections are made when first needed and again after a loss.
// Owner: the thread of this node's balancer, which must poll() it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "api/handover.h"
#include "kv/transfer.h"

namespace tandem::engine {

class SlabReads {
 public:
  struct Parts {
    std::vector<std::unique_ptr<kv::KvTransfer>> transfers;  // by rank of this node, each over that rank's slab
    int32_t first_rank = 0;                                  // of this node
    std::vector<api::RankAddress> addresses;                 // of all ranks; where each listens
  };
  explicit SlabReads(Parts parts);

  // Reads ranges of from_rank's slab, which is on another node, into to_rank's, which is on this. Returns its number.
  // The memory belongs to the read until take_end() gives its end or cancel() was called.
  uint64_t post(int32_t to_rank, int32_t from_rank, std::vector<kv::CopyRange> ranges, TimePoint now);
  // The end of a read, once.
  std::optional<Status> take_end(uint64_t read);
  void cancel(uint64_t read);
  // Progresses everything, serving others included. Returns whether anything happened.
  bool poll(TimePoint now);

 private:
  struct Peer {
    std::optional<PeerId> id;
    bool is_up = false;
  };
  struct Read {
    size_t transfer = 0;
    int32_t from_rank = 0;
    std::vector<kv::CopyRange> waiting;  // until the connection stands
    std::optional<Status> end;
  };
  void take(size_t transfer, kv::TransferEvent& event);
  void lost(size_t transfer, PeerId peer, const std::string& reason);
  int32_t rank_of(size_t transfer, PeerId peer) const;  // -1: one that called us

  const Parts parts_;
  std::vector<std::map<int32_t, Peer>> peers_;  // by transfer, then rank of another node
  std::map<uint64_t, Read> reads_;
  uint64_t next_read_ = 1;
  std::vector<kv::TransferEvent> events_;  // scratch
};

}  // namespace tandem::engine
