#include "kv/storage.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"

namespace tandem::kv {
namespace {

// Four lanes of multiply-rotate over 8-byte words: the lanes hide the multiplier's latency. Not FNV byte by byte, which
// manages 1 GB/s. Odd constants from the fractional digits of sqrt(2) and sqrt(3).
class RowDigest {
 public:
  void add(const std::byte* row, int64_t bytes) {
    for (; bytes >= 32; row += 32, bytes -= 32) {
      for (int lane = 0; lane < 4; ++lane) mix(lane, load(row + 8 * lane, 8));
    }
    for (int lane = 0; bytes > 0; ++lane, row += 8, bytes -= 8)
      mix(lane, load(row, size_t(std::min<int64_t>(bytes, 8))));
  }

  uint64_t finish(uint64_t seed) const {
    uint64_t digest = seed * kMul + kAdd;
    for (uint64_t lane : lanes_) {
      digest = (digest ^ lane) * kMul;
      digest ^= digest >> 29;
    }
    return digest;
  }

 private:
  static constexpr uint64_t kMul = 0x6a09e667f3bcc909u, kAdd = 0xbb67ae8584caa73bu;

  static uint64_t load(const std::byte* at, size_t bytes) {
    uint64_t word = 0;
    std::memcpy(&word, at, bytes);
    return word;
  }
  void mix(int lane, uint64_t word) { lanes_[lane] = std::rotl((lanes_[lane] ^ word) * kMul, 29); }

  uint64_t lanes_[4] = {1, 2, 3, 4};
};

}  // namespace

uint64_t KvStorage::digest(const int32_t* blocks, int32_t num_tokens) const {
  CHECK(buffer_.device() == device::Device::kCpu);
  CHECK(num_tokens >= 0);
  RowDigest digest;
  const int64_t row_bytes = layout_.row_bytes();
  for (int32_t layer = 0; layer < layout_.num_layers; ++layer) {
    int32_t left = num_tokens;
    for (const int32_t* block = blocks; left > 0; ++block, left -= layout_.block_tokens) {
      CHECK(*block >= 0);
      CHECK(*block < layout_.num_blocks);
      const std::byte* row = static_cast<const std::byte*>(base()) + layout_.offset(layer, *block);
      for (int32_t token = 0; token < std::min(left, layout_.block_tokens); ++token, row += row_bytes) {
        digest.add(row, row_bytes);
      }
    }
  }
  return digest.finish(uint64_t(num_tokens));
}

}  // namespace tandem::kv
