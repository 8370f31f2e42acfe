#include "router/pick_pair.h"

#include <algorithm>

#include "base/check.h"

namespace tandem::router {

Picker::Picker(PolicyConfig config, uint64_t seed) : config_(config), random_(seed), prefixes_(config.max_tree_size) {}

size_t Picker::below(size_t bound) { return std::uniform_int_distribution<size_t>(0, bound - 1)(random_); }

std::optional<InstanceId> Picker::pick(std::span<const Candidate> candidates, RoutedPrompt prompt, TimePoint now) {
  if (candidates.empty()) return std::nullopt;
  switch (config_.policy) {
    case Policy::kRandom: return candidates[below(candidates.size())].id;
    case Policy::kRoundRobin: return candidates[turn_++ % candidates.size()].id;
    case Policy::kPowerOfTwo: return power_of_two(candidates);
    case Policy::kCacheAware: return cache_aware(candidates, prompt.text, now);
    case Policy::kBucket: return bucket(candidates, prompt.bytes, now);
  }
  return std::nullopt;
}

InstanceId Picker::power_of_two(std::span<const Candidate> candidates) {
  if (candidates.size() == 1) return candidates[0].id;
  const size_t first = below(candidates.size());
  size_t second = below(candidates.size() - 1);
  second += second >= first;
  const Candidate& a = candidates[first];
  const Candidate& b = candidates[second];
  // Tokens and requests do not compare: tokens only when both are known.
  if (a.load && b.load && *a.load != *b.load) return *a.load < *b.load ? a.id : b.id;
  return b.in_flight < a.in_flight ? b.id : a.id;
}

// Ties are broken at random: in an idle fleet the first instance would get everything.
InstanceId Picker::least_loaded(std::span<const Candidate> candidates) {
  size_t least = SIZE_MAX, ties = 0;
  InstanceId chosen;
  for (const Candidate& candidate : candidates) {
    if (candidate.in_flight > least) continue;
    ties = candidate.in_flight < least ? 1 : ties + 1;
    least = candidate.in_flight;
    if (below(ties) == 0) chosen = candidate.id;
  }
  return chosen;
}

bool Picker::unbalanced(std::span<const Candidate> candidates) const {
  auto [least, most] = std::minmax_element(candidates.begin(), candidates.end(),
                                           [](const auto& a, const auto& b) { return a.in_flight < b.in_flight; });
  return most->in_flight - least->in_flight > config_.balance_abs_threshold &&
         static_cast<double>(most->in_flight) > config_.balance_rel_threshold * static_cast<double>(least->in_flight);
}

// The k-th instance, by age, has the k-th range of lengths; load decides while nothing is known or too much is on one.
InstanceId Picker::bucket(std::span<const Candidate> candidates, size_t bytes, TimePoint now) {
  const std::optional<size_t> place = lengths_.place(bytes, candidates.size(), now);
  if (!place || unbalanced(candidates)) return least_loaded(candidates);
  std::vector<InstanceId> ids;
  for (const Candidate& candidate : candidates) ids.push_back(candidate.id);
  std::sort(ids.begin(), ids.end());
  return ids[*place];
}

InstanceId Picker::cache_aware(std::span<const Candidate> candidates, std::string_view text, TimePoint now) {
  if (now >= next_eviction_) {
    // A tenth is freed at a time, so that inserting seldom has to.
    prefixes_.evict_to(std::min(prefixes_.bytes(), config_.max_tree_size - config_.max_tree_size / 10));
    next_eviction_ = now + config_.eviction_interval;
  }
  InstanceId chosen = least_loaded(candidates);
  if (text.empty()) return chosen;
  if (!unbalanced(candidates)) {
    std::vector<InstanceId> ids;
    for (const Candidate& candidate : candidates) ids.push_back(candidate.id);
    const auto match = prefixes_.find(text, ids);
    const double share = static_cast<double>(match.matched_bytes) / static_cast<double>(text.size());
    if (match.matched_bytes > 0 && share > config_.cache_threshold) chosen = match.instance;
  }
  prefixes_.insert(text, chosen, now);
  return chosen;
}

std::optional<PairChoice> pick_pair(std::pair<Picker&, Picker&> pickers, std::span<const Candidate> prefills,
                                    std::span<const Candidate> decodes, RoutedPrompt prompt, TimePoint now) {
  // Neither picker is asked in vain: a round-robin turn or a remembered prefix would be lost.
  if (prefills.empty() || decodes.empty()) return std::nullopt;
  auto prefill = pickers.first.pick(prefills, prompt, now);
  auto decode = pickers.second.pick(decodes, prompt, now);
  CHECK(prefill.has_value() && decode.has_value());
  return PairChoice{*prefill, *decode};
}

std::vector<uint64_t> draw_rooms(std::mt19937_64& random, size_t count) {
  std::vector<uint64_t> rooms(count);
  for (uint64_t& room : rooms) room = random() >> 1;
  return rooms;
}

uint64_t room_of_rank(uint64_t room, size_t rank, size_t num_ranks) {
  constexpr uint64_t kRooms = uint64_t(1) << 63;
  const uint64_t first = room - room % num_ranks;
  return first + num_ranks <= kRooms ? first + rank : first - num_ranks + rank;
}

}  // namespace tandem::router
