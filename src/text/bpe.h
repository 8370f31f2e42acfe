// Bpe: byte-pair merging of one word, ids in and ids out. Immutable after construction; any thread, each with its own
// Scratch. Time for a word of n bytes: O(n log n).
// Source: Sennrich et al. 2016; the order of merges is that of Hugging Face tokenizers: lowest rank first, leftmost
// first.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace tandem::text {

class Bpe {
 public:
  struct Merge {
    int32_t left, right, merged;  // ids; the position in the list is the rank
  };
  struct Scratch {
    std::vector<int32_t> ids, previous, next;
    struct Candidate {
      uint32_t rank, position;
      int32_t left, right;
    };
    std::vector<Candidate> heap;
  };

  Bpe() = default;
  // id_of_byte: the token of each single byte. A pair listed twice has its last rank.
  Bpe(const std::array<int32_t, 256>& id_of_byte, std::span<const Merge> merges);

  // Appends the tokens of word to out.
  void encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& out) const;

 private:
  static constexpr uint32_t kNoRank = UINT32_MAX;
  struct Slot {
    uint64_t pair = UINT64_MAX;
    uint32_t rank = kNoRank;
    int32_t merged = -1;
  };
  const Slot& find(int32_t left, int32_t right) const;
  void encode_short(std::string_view word, Scratch& scratch, std::vector<int32_t>& out) const;
  void encode_long(std::string_view word, Scratch& scratch, std::vector<int32_t>& out) const;
  void push_candidate(Scratch& scratch, int32_t position) const;

  std::array<int32_t, 256> id_of_byte_{};
  std::vector<Slot> slots_ =
      std::vector<Slot>(1);  // open addressing, a power of two, at most half full; one empty slot ends
  uint64_t mask_ = 0;
};

}  // namespace tandem::text
