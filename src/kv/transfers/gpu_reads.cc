#include "kv/transfers/gpu_reads.h"

#include <algorithm>

#include "base/check.h"

namespace tandem::kv {
namespace {

constexpr size_t kLaunches = 4;  // under way at once
constexpr size_t kMaxPieces = 16384;

bool is_aligned(const CopyRange& range) { return (range.remote_offset | range.local_offset | range.bytes) % 16 == 0; }

}  // namespace

Result<std::unique_ptr<GpuReads>> GpuReads::create(std::span<std::byte> region, int32_t gpu) {
  std::unique_ptr<GpuReads> reads(new GpuReads(region, gpu));
  ASSIGN_OR_RETURN(reads->stream_, device::Stream::create(true));  // beside the models, not behind them
  for (size_t i = 0; i < kLaunches; ++i) {
    Launch& launch = reads->launches_.emplace_back();
    launch.pieces = device::Buffer(device::Device::kPinned, kMaxPieces * sizeof(device::CopyPiece));
    ASSIGN_OR_RETURN(launch.done, device::Event::create());
  }
  return reads;
}

GpuReads::~GpuReads() {
  const auto is_busy = [](const Launch& launch) { return launch.read.has_value(); };
  if (std::ranges::any_of(launches_, is_busy)) stream_.synchronize();
}

void GpuReads::post(uint64_t read_id, PeerId peer, GpuSource source, std::span<const CopyRange> ranges) {
  Read& read = waiting_.emplace_back();
  read.id = read_id;
  read.peer = peer;
  read.source = std::move(source);
  read.ranges.assign(ranges.begin(), ranges.end());
}

bool GpuReads::fail(uint64_t read_id, const Error& error) {
  bool found = false;
  const auto fail_it = [&](Read& read) {
    if (read.id != read_id) return;
    found = true;
    if (!read.error) read.error = error;
  };
  for (Read& read : waiting_) fail_it(read);
  for (Launch& launch : launches_) {
    if (launch.read) fail_it(*launch.read);
  }
  return found;
}

void GpuReads::fail_peer(PeerId peer, const Error& error) {
  std::vector<uint64_t> ids;
  for (const Read& read : waiting_) {
    if (read.peer == peer) ids.push_back(read.id);
  }
  for (const Launch& launch : launches_) {
    if (launch.read && launch.read->peer == peer) ids.push_back(launch.read->id);
  }
  for (const uint64_t id : ids) fail(id, error);
}

// What the kernel cannot copy goes piece by piece.
void GpuReads::launch(Launch& launch, Read read) {
  auto* pieces = static_cast<device::CopyPiece*>(launch.pieces.data());
  size_t count = 0;
  for (const CopyRange& range : read.ranges) {
    const std::byte* from = read.source->data() + range.remote_offset;
    std::byte* to = region_.data() + range.local_offset;
    if (is_aligned(range) && count < kMaxPieces) {
      pieces[count++] = {from, to, range.bytes};
    } else {
      device::copy_async(stream_, to, from, size_t(range.bytes));
    }
    bytes_read_ += uint64_t(range.bytes);
  }
  device::copy_pieces_async(stream_, {pieces, count});
  launch.done.record(stream_);
  launch.read = std::move(read);
}

bool GpuReads::advance(std::vector<TransferEvent>& events) {
  bool any = false;
  for (Launch& launch : launches_) {
    if (!launch.read || !launch.done.is_done()) continue;
    events.push_back(ReadFinished{launch.read->id, launch.read->outcome()});
    launch.read.reset();
    any = true;
  }
  for (Launch& free : launches_) {
    while (!free.read && !waiting_.empty()) {
      Read read = std::move(waiting_.front());
      waiting_.pop_front();
      any = true;
      if (read.error) {
        events.push_back(ReadFinished{read.id, read.outcome()});
        continue;
      }
      device::use_gpu(gpu_);  // the transfer thread's, which it may have been told before or not
      launch(free, std::move(read));
    }
  }
  return any;
}

}  // namespace tandem::kv
