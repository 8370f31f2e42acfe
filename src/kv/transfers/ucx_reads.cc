#include "kv/transfers/ucx_reads.h"

#include <algorithm>

#include "base/check.h"

namespace tandem::kv {
namespace {

// Enough to keep a link busy over its round trip, little enough that a cancelled or lost read ends soon.
constexpr int32_t kMaxPieces = 64;
constexpr int64_t kMaxBytes = int64_t(16) << 20;
constexpr int64_t kPieceBytes = int64_t(1) << 20;

}  // namespace

void UcxReads::post(uint64_t read_id, PeerId peer, transport::EndpointId endpoint, std::span<const CopyRange> ranges) {
  Read read;
  read.peer = peer;
  read.endpoint = endpoint;
  for (const CopyRange& range : ranges) {  // neighbours on both sides travel as one
    CopyRange* last = read.ranges.empty() ? nullptr : &read.ranges.back();
    if (last != nullptr && last->remote_offset + last->bytes == range.remote_offset &&
        last->local_offset + last->bytes == range.local_offset) {
      last->bytes += range.bytes;
    } else {
      read.ranges.push_back(range);
    }
  }
  const bool added = reads_.emplace(read_id, std::move(read)).second;
  CHECK(added);  // read ids are unique
  lanes_[peer.value].waiting.push_back(read_id);
}

void UcxReads::fail(uint64_t read_id, const Error& error) {
  const auto it = reads_.find(read_id);
  if (it == reads_.end()) return;
  if (it->second.status) it->second.status = error;
  finish_if_done(read_id);
}

void UcxReads::fail_peer(PeerId peer, const Error& error) {
  std::vector<uint64_t> ids;
  for (const auto& [id, read] : reads_) {
    if (read.peer == peer) ids.push_back(id);
  }
  for (const uint64_t id : ids) fail(id, error);
}

// A read is done when nothing of it is in UCX and nothing is left to post, or nothing shall be.
void UcxReads::finish_if_done(uint64_t read_id) {
  const auto it = reads_.find(read_id);
  Read& read = it->second;
  if (read.in_flight > 0 || (read.status && read.next_range < read.ranges.size())) return;
  finished_.push_back({read_id, read.status});
  const auto lane = lanes_.find(read.peer.value);
  if (lane != lanes_.end()) std::erase(lane->second.waiting, read_id);
  reads_.erase(it);
}

void UcxReads::on_get(const transport::GetFinished& get) {
  const auto it = reads_.find(get.get_id);
  CHECK(it != reads_.end());
  Read& read = it->second;
  Lane& lane = lanes_.at(read.peer.value);
  CHECK(read.in_flight > 0);
  --read.in_flight;
  --lane.in_flight;
  lane.in_flight_bytes -= int64_t(get.bytes);
  if (get.status) {
    bytes_read_ += get.bytes;
  } else if (read.status) {
    read.status = get.status;
  }
  finish_if_done(get.get_id);
}

bool UcxReads::post_piece(uint64_t read_id, Read& read, Lane& lane) {
  const CopyRange& range = read.ranges[read.next_range];
  const int64_t bytes = std::min(kPieceBytes, range.bytes - read.next_offset);
  const std::span<std::byte> local = region_.subspan(size_t(range.local_offset + read.next_offset), size_t(bytes));
  const Status posted = worker_.get(read_id, read.endpoint, uint64_t(range.remote_offset + read.next_offset), local);
  if (!posted) {
    read.status = posted;
    return false;
  }
  ++read.in_flight;
  ++lane.in_flight;
  lane.in_flight_bytes += bytes;
  read.next_offset += bytes;
  if (read.next_offset == range.bytes) {
    read.next_offset = 0;
    ++read.next_range;
  }
  return true;
}

bool UcxReads::post_pieces(Lane& lane) {
  bool any = false;
  while (!lane.waiting.empty() && lane.in_flight < kMaxPieces && lane.in_flight_bytes < kMaxBytes) {
    const uint64_t read_id = lane.waiting.front();
    Read& read = reads_.at(read_id);
    const bool left = read.status && read.next_range < read.ranges.size();
    if (left) any |= post_piece(read_id, read, lane);
    if (read.status && read.next_range < read.ranges.size()) continue;
    lane.waiting.pop_front();
    finish_if_done(read_id);
  }
  return any;
}

bool UcxReads::advance(std::vector<TransferEvent>& events) {
  bool any = false;
  for (auto it = lanes_.begin(); it != lanes_.end();) {
    any |= post_pieces(it->second);
    const bool idle = it->second.waiting.empty() && it->second.in_flight == 0;
    it = idle ? lanes_.erase(it) : std::next(it);
  }
  any |= !finished_.empty();
  for (ReadFinished& read : finished_) events.push_back(std::move(read));
  finished_.clear();
  return any;
}

}  // namespace tandem::kv
