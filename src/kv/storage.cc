#include "kv/storage.h"

#include <algorithm>

#include "base/check.h"
#include "device/digest.h"

namespace tandem::kv {

uint64_t KvStorage::digest(const int32_t* blocks, int32_t num_tokens) const {
  CHECK(buffer_.device() == device::Device::kCpu);
  CHECK(num_tokens >= 0);
  device::Digest digest;
  const int64_t row_bytes = layout_.row_bytes();
  for (int32_t layer = 0; layer < layout_.num_layers; ++layer) {
    int32_t left = num_tokens;
    for (const int32_t* block = blocks; left > 0; ++block, left -= layout_.block_tokens) {
      CHECK(*block >= 0);
      CHECK(*block < layout_.num_blocks);
      const std::byte* row = static_cast<const std::byte*>(base()) + layout_.offset(layer, *block);
      for (int32_t token = 0; token < std::min(left, layout_.block_tokens); ++token, row += row_bytes) {
        digest.add({row, size_t(row_bytes)});
      }
    }
  }
  return digest.finish(uint64_t(num_tokens));
}

}  // namespace tandem::kv
