// A 64-bit digest over bytes, to tell corrupted or mistaken copies from right ones (not an attacker's). 11 GB/s on one
// core. Values; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace tandem::device {

// Four lanes of multiply-rotate over 8-byte words: the lanes hide the multiplier's latency. Not FNV byte by byte, which
// manages 1 GB/s. Each add() starts on the first lane.
class Digest {
 public:
  void add(std::span<const std::byte> bytes);
  uint64_t finish(uint64_t seed) const;

 private:
  uint64_t lanes_[4] = {1, 2, 3, 4};
};

inline uint64_t digest(std::span<const std::byte> bytes) {
  Digest d;
  d.add(bytes);
  return d.finish(bytes.size());
}

// The one that GPUs compute (device/gpu.h): a sum over 8-byte words, each mixed with its place, in whatever order.
// Equal to no digest() above.
uint64_t digest_of_words(std::span<const std::byte> bytes);  // a multiple of 8

}  // namespace tandem::device
