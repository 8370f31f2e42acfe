#include "kv/transfers/ucx_reads.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "device/buffer.h"

namespace tandem::kv {
namespace {

// Asked for per peer: enough to keep a link busy over its round trip, little enough that the peer's send queue is
// short.
constexpr int64_t kMaxBytes = int64_t(8) << 20;

}  // namespace

void UcxReads::post(uint64_t read_id, PeerId peer, std::span<const CopyRange> ranges) {
  Read read;
  read.peer = peer;
  for (const CopyRange& range : ranges) {  // neighbours on both sides travel as one
    CopyRange* last = read.ranges.empty() ? nullptr : &read.ranges.back();
    if (last != nullptr && last->remote_offset + last->bytes == range.remote_offset &&
        last->local_offset + last->bytes == range.local_offset) {
      last->bytes += range.bytes;
    } else {
      read.ranges.push_back(range);
    }
  }
  const bool empty = read.ranges.empty();
  const bool added = reads_.emplace(read_id, std::move(read)).second;
  CHECK(added);  // read ids are unique
  if (empty) return end(read_id, Ok{});
  lanes_[peer.value].waiting.push_back(read_id);
}

void UcxReads::end(uint64_t read_id, Status status) {
  const auto it = reads_.find(read_id);
  CHECK(it != reads_.end());
  const auto lane = lanes_.find(it->second.peer.value);
  if (lane != lanes_.end()) {
    std::erase(lane->second.waiting, read_id);
    for (auto& [tag, request] : lane->second.requests) request.dropped |= request.read_id == read_id;
  }
  finished_.push_back({read_id, std::move(status)});
  reads_.erase(it);
}

void UcxReads::fail(uint64_t read_id, const Error& error) {
  if (reads_.contains(read_id)) end(read_id, error);
}

void UcxReads::fail_peer(PeerId peer, const Error& error) {
  lanes_.erase(peer.value);
  std::vector<uint64_t> ids;
  for (const auto& [id, read] : reads_) {
    if (read.peer == peer) ids.push_back(id);
  }
  for (const uint64_t id : ids) end(id, error);
}

bool UcxReads::on_data(PeerId peer, uint64_t tag, std::string_view bytes) {
  const auto lane = lanes_.find(peer.value);
  if (lane == lanes_.end()) return false;
  const auto found = lane->second.requests.find(tag);
  if (found == lane->second.requests.end()) return false;
  Request& request = found->second;
  lane->second.bytes -= int64_t(bytes.size());
  while (!bytes.empty()) {
    if (request.parts.empty()) return false;
    Part& part = request.parts.front();
    const int64_t step = std::min(part.bytes, int64_t(bytes.size()));
    if (!request.dropped) {
      std::byte* const to = region_.data() + part.local_offset;
      on_gpu_ ? device::copy_bytes(to, bytes.data(), size_t(step))
              : static_cast<void>(std::memcpy(to, bytes.data(), size_t(step)));
      bytes_read_ += uint64_t(step);
    }
    bytes.remove_prefix(size_t(step));
    part.local_offset += step;
    part.bytes -= step;
    if (part.bytes == 0) request.parts.pop_front();
  }
  if (!request.parts.empty()) return true;
  const uint64_t read_id = request.read_id;
  const bool dropped = request.dropped;
  lane->second.requests.erase(found);
  if (dropped) return true;
  Read& read = reads_.at(read_id);
  if (--read.requests == 0 && read.next_range == read.ranges.size()) end(read_id, Ok{});
  return true;
}

// As many parts of the read as one request may hold.
void UcxReads::send_request(uint64_t read_id, Read& read, Lane& lane) {
  Request request;
  request.read_id = read_id;
  ReadRequestFrame frame;
  frame.tag = next_tag_++;
  int64_t room = kMaxRequestBytes;
  while (room > 0 && read.next_range < read.ranges.size() && frame.parts.size() < kMaxRequestParts) {
    const CopyRange& range = read.ranges[read.next_range];
    const int64_t bytes = std::min(room, range.bytes - read.next_offset);
    frame.parts.push_back({uint64_t(range.remote_offset + read.next_offset), uint32_t(bytes)});
    request.parts.push_back({range.local_offset + read.next_offset, bytes});
    room -= bytes;
    lane.bytes += bytes;
    read.next_offset += bytes;
    if (read.next_offset == range.bytes) {
      read.next_offset = 0;
      ++read.next_range;
    }
  }
  ++read.requests;
  lane.requests.emplace(frame.tag, std::move(request));
  send_(read.peer, frame);
}

bool UcxReads::ask(PeerId peer, Lane& lane) {
  bool any = false;
  while (!lane.waiting.empty() && lane.bytes < kMaxBytes) {
    Read& read = reads_.at(lane.waiting.front());
    CHECK(read.peer == peer);
    send_request(lane.waiting.front(), read, lane);
    if (read.next_range == read.ranges.size()) lane.waiting.pop_front();
    any = true;
  }
  return any;
}

bool UcxReads::advance(std::vector<TransferEvent>& events) {
  bool any = false;
  for (auto it = lanes_.begin(); it != lanes_.end();) {
    any |= ask(PeerId{it->first}, it->second);
    const bool idle = it->second.waiting.empty() && it->second.requests.empty();
    it = idle ? lanes_.erase(it) : std::next(it);
  }
  any |= !finished_.empty();
  for (ReadFinished& read : finished_) events.push_back(std::move(read));
  finished_.clear();
  return any;
}

}  // namespace tandem::kv
