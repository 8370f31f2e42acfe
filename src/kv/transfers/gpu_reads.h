// Reads of a peer's cache that lies in the memory of a GPU of this host, by copies between the GPUs. A read that is
// given up ends when its copies have, so that nothing is written behind the back of its blocks' next owner. Owner: the
// transfer thread.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "device/buffer.h"
#include "device/gpu.h"
#include "kv/transfer.h"

namespace tandem::kv {

// A peer's cache. Shared by the link and the reads under way.
using GpuSource = std::shared_ptr<const device::ImportedMemory>;

class GpuReads {
 public:
  // region: where reads land, on this GPU.
  static Result<std::unique_ptr<GpuReads>> create(std::span<std::byte> region, int32_t gpu);
  // Waits for what is being copied: its pieces, the peer's memory and the region may go after it.
  ~GpuReads();

  // Ranges are checked by the caller against both regions.
  void post(uint64_t read_id, PeerId peer, GpuSource source, std::span<const CopyRange> ranges);
  // It ends with `error` once its copies are done. False: no read of this id is under way.
  bool fail(uint64_t read_id, const Error& error);
  void fail_peer(PeerId peer, const Error& error);
  // Starts what there is room for, and appends what finished. Returns whether anything did.
  bool advance(std::vector<TransferEvent>& events);
  uint64_t bytes_read() const { return bytes_read_; }

 private:
  struct Read {
    uint64_t id = 0;
    PeerId peer;
    GpuSource source;
    std::vector<CopyRange> ranges;
    std::optional<Error> error;  // why it was given up
    Status outcome() const { return error ? Status(*error) : Status(Ok{}); }
  };
  // Pieces of one launch, and the read that they are all of.
  struct Launch {
    device::Buffer pieces;  // pinned
    device::Event done;
    std::optional<Read> read;
  };
  explicit GpuReads(std::span<std::byte> region, int32_t gpu) : region_(region), gpu_(gpu) {}
  void launch(Launch& launch, Read read);

  const std::span<std::byte> region_;
  const int32_t gpu_;
  device::Stream stream_;
  std::vector<Launch> launches_;
  std::deque<Read> waiting_;
  uint64_t bytes_read_ = 0;
};

}  // namespace tandem::kv
