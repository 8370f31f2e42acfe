#include "engine/slab_reads.h"

#include <fmt/format.h>

#include <utility>
#include <variant>

#include "base/check.h"

namespace tandem::engine {

SlabReads::SlabReads(Parts parts) : parts_(std::move(parts)), peers_(parts_.transfers.size()) {}

uint64_t SlabReads::post(int32_t to_rank, int32_t from_rank, std::vector<kv::CopyRange> ranges, TimePoint now) {
  const auto transfer = size_t(to_rank - parts_.first_rank);
  CHECK(transfer < parts_.transfers.size());
  CHECK(size_t(from_rank) < parts_.addresses.size());
  const uint64_t number = next_read_++;
  Peer& peer = peers_[transfer][from_rank];
  if (!peer.id) {
    const api::RankAddress& address = parts_.addresses[size_t(from_rank)];
    peer.id = parts_.transfers[transfer]->connect(address.host, address.port, now);
  }
  Read& read = reads_[number];
  read.transfer = transfer;
  read.from_rank = from_rank;
  if (peer.is_up) {
    parts_.transfers[transfer]->post_read(number, *peer.id, ranges);
  } else {
    read.waiting = std::move(ranges);
  }
  return number;
}

std::optional<Status> SlabReads::take_end(uint64_t number) {
  const auto known = reads_.find(number);
  CHECK(known != reads_.end());
  std::optional<Status> end = std::move(known->second.end);
  if (end) reads_.erase(known);
  return end;
}

// A cancelled read ends at once: what still arrives of it is dropped by the transfer.
void SlabReads::cancel(uint64_t number) {
  const auto known = reads_.find(number);
  if (known == reads_.end()) return;
  const Read& read = known->second;
  if (read.waiting.empty() && !read.end) parts_.transfers[read.transfer]->cancel_read(number);
  reads_.erase(known);
}

bool SlabReads::poll(TimePoint now) {
  bool any = false;
  for (size_t i = 0; i < parts_.transfers.size(); ++i) {
    events_.clear();
    any |= parts_.transfers[i]->poll(now, events_);
    for (kv::TransferEvent& event : events_) take(i, event);
  }
  return any;
}

int32_t SlabReads::rank_of(size_t transfer, PeerId id) const {
  for (const auto& [rank, peer] : peers_[transfer]) {
    if (peer.id == id) return rank;
  }
  return -1;
}

void SlabReads::take(size_t transfer, kv::TransferEvent& event) {
  if (const auto* finished = std::get_if<kv::ReadFinished>(&event)) {
    const auto known = reads_.find(finished->read_id);
    if (known != reads_.end()) known->second.end = finished->status;
    return;
  }
  if (const auto* gone = std::get_if<kv::PeerLost>(&event)) return lost(transfer, gone->peer, gone->reason);
  const auto* connected = std::get_if<kv::PeerConnected>(&event);
  if (connected == nullptr) return;  // messages are not part of this
  const int32_t rank = rank_of(transfer, connected->peer);
  if (rank < 0) return;
  peers_[transfer][rank].is_up = true;
  for (auto& [number, read] : reads_) {
    if (read.transfer != transfer || read.from_rank != rank || read.waiting.empty()) continue;
    parts_.transfers[transfer]->post_read(number, connected->peer, std::exchange(read.waiting, {}));
  }
}

// Reads under way end by events of their own; those that waited for the connection end here.
void SlabReads::lost(size_t transfer, PeerId id, const std::string& reason) {
  const int32_t rank = rank_of(transfer, id);
  if (rank < 0) return;
  peers_[transfer].erase(rank);
  for (auto& [number, read] : reads_) {
    if (read.transfer != transfer || read.from_rank != rank || read.waiting.empty()) continue;
    read.waiting.clear();
    read.end = peer_lost(fmt::format("rank {} cannot be reached: {}", rank, reason));
  }
}

}  // namespace tandem::engine
