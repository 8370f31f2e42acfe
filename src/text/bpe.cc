#include "text/bpe.h"

#include <algorithm>
#include <bit>

namespace tandem::text {
namespace {

// Words up to this length are merged by scanning for the lowest rank, which beats the heap there (quadratic, but
// short).
constexpr size_t kShortWord = 48;

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

uint64_t hash_pair(uint64_t key) {
  key *= 0x9E3779B97F4A7C15u;
  return key ^ key >> 32;
}

// Lowest rank on top, then leftmost.
bool later(const Bpe::Scratch::Candidate& a, const Bpe::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
}

}  // namespace

Bpe::Bpe(const std::array<int32_t, 256>& id_of_byte, std::span<const Merge> merges) : id_of_byte_(id_of_byte) {
  slots_.assign(std::bit_ceil(merges.size() * 2 + 2), Slot{});
  mask_ = slots_.size() - 1;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    uint64_t key = pair_key(merges[rank].left, merges[rank].right);
    uint64_t at = hash_pair(key) & mask_;
    while (slots_[at].pair != UINT64_MAX && slots_[at].pair != key) at = (at + 1) & mask_;
    slots_[at] = {key, static_cast<uint32_t>(rank), merges[rank].merged};
  }
}

const Bpe::Slot& Bpe::find(int32_t left, int32_t right) const {
  uint64_t key = pair_key(left, right);
  uint64_t at = hash_pair(key) & mask_;
  while (slots_[at].pair != key && slots_[at].pair != UINT64_MAX) at = (at + 1) & mask_;
  return slots_[at];
}

void Bpe::encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& out) const {
  word.size() <= kShortWord ? encode_short(word, scratch, out) : encode_long(word, scratch, out);
}

void Bpe::encode_short(std::string_view word, Scratch&, std::vector<int32_t>& out) const {
  std::array<int32_t, kShortWord> ids;
  std::array<uint32_t, kShortWord> ranks;  // of the pair (i, i + 1)
  std::array<int32_t, kShortWord> results;
  size_t count = word.size();
  for (size_t i = 0; i < count; ++i) ids[i] = id_of_byte_[static_cast<unsigned char>(word[i])];
  auto look = [&](size_t i) {
    if (i + 1 >= count) return;
    const Slot& slot = find(ids[i], ids[i + 1]);
    ranks[i] = slot.rank, results[i] = slot.merged;
  };
  for (size_t i = 0; i + 1 < count; ++i) look(i);
  while (count > 1) {
    size_t best = std::min_element(ranks.begin(), ranks.begin() + (count - 1)) - ranks.begin();
    if (ranks[best] == kNoRank) break;
    ids[best] = results[best];
    std::copy(ids.begin() + best + 2, ids.begin() + count, ids.begin() + best + 1);
    if (best + 2 < count) {  // pair best+1 is gone; later pairs move down
      std::copy(ranks.begin() + best + 2, ranks.begin() + (count - 1), ranks.begin() + best + 1);
      std::copy(results.begin() + best + 2, results.begin() + (count - 1), results.begin() + best + 1);
    }
    --count;
    look(best);
    if (best > 0) look(best - 1);
  }
  out.insert(out.end(), ids.begin(), ids.begin() + count);
}

void Bpe::push_candidate(Scratch& s, int32_t position) const {
  if (position < 0 || s.next[position] < 0) return;
  int32_t left = s.ids[position], right = s.ids[s.next[position]];
  const Slot& slot = find(left, right);
  if (slot.rank == kNoRank) return;
  s.heap.push_back({slot.rank, static_cast<uint32_t>(position), left, right});
  std::push_heap(s.heap.begin(), s.heap.end(), later);
}

void Bpe::encode_long(std::string_view word, Scratch& s, std::vector<int32_t>& out) const {
  auto count = static_cast<int32_t>(word.size());
  s.ids.resize(count), s.previous.resize(count), s.next.resize(count);
  s.heap.clear();
  for (int32_t i = 0; i < count; ++i) {
    s.ids[i] = id_of_byte_[static_cast<unsigned char>(word[i])];
    s.previous[i] = i - 1;
    s.next[i] = i + 1 < count ? i + 1 : -1;
  }
  for (int32_t i = 0; i < count; ++i) push_candidate(s, i);
  while (!s.heap.empty()) {
    std::pop_heap(s.heap.begin(), s.heap.end(), later);
    Scratch::Candidate top = s.heap.back();
    s.heap.pop_back();
    auto position = static_cast<int32_t>(top.position);
    int32_t right = s.next[position];
    // Stale: one of the two was merged in the meantime (a swallowed symbol has id -1).
    if (right < 0 || s.ids[position] != top.left || s.ids[right] != top.right) continue;
    s.ids[position] = find(top.left, top.right).merged;
    s.ids[right] = -1;
    s.next[position] = s.next[right];
    if (s.next[right] >= 0) s.previous[s.next[right]] = position;
    push_candidate(s, position);
    push_candidate(s, s.previous[position]);
  }
  for (int32_t i = 0; i >= 0; i = s.next[i]) out.push_back(s.ids[i]);
}

}  // namespace tandem::text
