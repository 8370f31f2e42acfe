// KvStorage owns the bytes of one rank's cache. Who may write which block is decided by scheduler::BlockPool's leases.
// The engine thread writes through kernels; the transfer thread writes blocks leased for a handover and lets peers
// read.
#pragma once

#include "device/buffer.h"
#include "kv/layout.h"

namespace tandem::kv {

class KvStorage {
 public:
  KvStorage(device::Device device, const KvLayout& layout)
      : layout_(layout), buffer_(device, size_t(layout.total_bytes())) {}

  const KvLayout& layout() const { return layout_; }
  void* base() const { return buffer_.data(); }
  void* layer_base(int32_t layer) const { return static_cast<char*>(buffer_.data()) + layout_.offset(layer, 0); }

  // device::Digest over the bytes of `num_tokens` tokens in `blocks` (block order, all layers), row by row. Both sides
  // of a handover compute it over their own memory; a GPU's rows are copied to the host block by block.
  uint64_t digest(const int32_t* blocks, int32_t num_tokens) const;

 private:
  KvLayout layout_;
  device::Buffer buffer_;
};

}  // namespace tandem::kv
