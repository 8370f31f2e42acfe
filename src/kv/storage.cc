#include "kv/storage.h"

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "device/digest.h"

namespace tandem::kv {

uint64_t KvStorage::digest(const int32_t* blocks, int32_t num_tokens) const {
  CHECK(num_tokens >= 0);
  const bool on_gpu = buffer_.device() != device::Device::kCpu;
  std::vector<std::byte> copied(on_gpu ? size_t(layout_.block_tokens) * size_t(layout_.row_bytes()) : 0);
  device::Digest digest;
  const int64_t row_bytes = layout_.row_bytes();
  for (int32_t layer = 0; layer < layout_.num_layers; ++layer) {
    int32_t left = num_tokens;
    for (const int32_t* block = blocks; left > 0; ++block, left -= layout_.block_tokens) {
      CHECK(*block >= 0);
      CHECK(*block < layout_.num_blocks);
      const std::byte* row = static_cast<const std::byte*>(base()) + layout_.offset(layer, *block);
      const int32_t tokens = std::min(left, layout_.block_tokens);
      if (on_gpu) {
        device::copy_bytes(copied.data(), row, size_t(tokens * row_bytes));
        row = copied.data();
      }
      for (int32_t token = 0; token < tokens; ++token, row += row_bytes) {
        digest.add({row, size_t(row_bytes)});
      }
    }
  }
  return digest.finish(uint64_t(num_tokens));
}

}  // namespace tandem::kv
