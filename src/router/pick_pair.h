// Which instance gets a request: pure choice over values, deterministic for a seed. The simulation runs this very code.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "router/config.h"
#include "router/instance_table.h"
#include "router/length_buckets.h"
#include "router/prefix_index.h"

namespace tandem::router {

struct Candidate {
  InstanceId id;
  size_t in_flight = 0;
  std::optional<int64_t> load;  // tokens; absent: never polled
};

// What a policy may look at.
struct RoutedPrompt {
  std::string_view text;  // its beginning; empty when there is none (token ids)
  size_t bytes = 0;       // of the prompt or prompts in the body
  RoutedPrompt(std::string_view t) : text(t), bytes(t.size()) {}
  RoutedPrompt(const char* t) : RoutedPrompt(std::string_view(t)) {}
  RoutedPrompt(const std::string& t) : RoutedPrompt(std::string_view(t)) {}
  RoutedPrompt(std::string_view t, size_t b) : text(t), bytes(b) {}
};

// The memory of one side's policy (prefill, decode or plain). One thread.
class Picker {
 public:
  Picker(PolicyConfig config, uint64_t seed);

  // Nothing: no candidates.
  std::optional<InstanceId> pick(std::span<const Candidate> candidates, RoutedPrompt prompt, TimePoint now);
  void forget(InstanceId instance) { prefixes_.forget(instance); }
  const PrefixIndex& prefixes() const { return prefixes_; }

 private:
  InstanceId cache_aware(std::span<const Candidate> candidates, std::string_view text, TimePoint now);
  InstanceId bucket(std::span<const Candidate> candidates, size_t bytes, TimePoint now);
  bool unbalanced(std::span<const Candidate> candidates) const;
  InstanceId least_loaded(std::span<const Candidate> candidates);
  InstanceId power_of_two(std::span<const Candidate> candidates);
  size_t below(size_t bound);

  PolicyConfig config_;
  std::mt19937_64 random_;
  uint64_t turn_ = 0;
  PrefixIndex prefixes_;
  LengthBuckets lengths_;
  TimePoint next_eviction_{};
};

struct PairChoice {
  InstanceId prefill, decode;
};

// Both sides by their own policy. Nothing: a side has no candidate.
std::optional<PairChoice> pick_pair(std::pair<Picker&, Picker&> pickers, std::span<const Candidate> prefills,
                                    std::span<const Candidate> decodes, RoutedPrompt prompt, TimePoint now);

// Room ids: uniform in [0, 2^63), so that signed readers are safe.
std::vector<uint64_t> draw_rooms(std::mt19937_64& random, size_t count);

// The room nearest to `room` that belongs to this rank: room modulo num_ranks is the rank.
uint64_t room_of_rank(uint64_t room, size_t rank, size_t num_ranks);

}  // namespace tandem::router
