#include "device/digest.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"

namespace tandem::device {
namespace {

// Odd constants from the fractional digits of sqrt(2) and sqrt(3).
constexpr uint64_t kMul = 0x6a09e667f3bcc909u, kAdd = 0xbb67ae8584caa73bu;

uint64_t load(const std::byte* at, size_t bytes) {
  uint64_t word = 0;
  std::memcpy(&word, at, bytes);
  return word;
}

uint64_t mix(uint64_t lane, uint64_t word) { return std::rotl((lane ^ word) * kMul, 29); }

}  // namespace

void Digest::add(std::span<const std::byte> bytes) {
  const std::byte* at = bytes.data();
  size_t left = bytes.size();
  for (; left >= 32; at += 32, left -= 32) {
    for (size_t lane = 0; lane < 4; ++lane) lanes_[lane] = mix(lanes_[lane], load(at + 8 * lane, 8));
  }
  for (size_t lane = 0; left > 0; ++lane) {
    const size_t word = std::min<size_t>(left, 8);
    lanes_[lane] = mix(lanes_[lane], load(at, word));
    at += word;
    left -= word;
  }
}

// The finalizer of SplitMix64 over word and place.
uint64_t digest_of_words(std::span<const std::byte> bytes) {
  CHECK(bytes.size() % 8 == 0);
  uint64_t sum = 0;
  for (size_t i = 0; i < bytes.size() / 8; ++i) {
    uint64_t x = load(bytes.data() + 8 * i, 8) + (i + 1) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    sum += x ^ (x >> 31);
  }
  return sum;
}

uint64_t Digest::finish(uint64_t seed) const {
  uint64_t digest = seed * kMul + kAdd;
  for (uint64_t lane : lanes_) {
    digest = (digest ^ lane) * kMul;
    digest ^= digest >> 29;
  }
  return digest;
}

}  // namespace tandem::device
