// Which instance gets a request: pure choice over values, deterministic for a seed. The simulation runs this very code.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "router/config.h"
#include "router/instance_table.h"
#include "router/prefix_index.h"

namespace tandem::router {

struct Candidate {
  InstanceId id;
  size_t in_flight = 0;
  std::optional<int64_t> load;  // tokens; absent: never polled
};

// The memory of one side's policy (prefill, decode or plain). One thread.
class Picker {
 public:
  Picker(PolicyConfig config, uint64_t seed);

  // text: the prompt's beginning, empty when there is none. Nothing: no candidates.
  std::optional<InstanceId> pick(std::span<const Candidate> candidates, std::string_view text, TimePoint now);
  void forget(InstanceId instance) { prefixes_.forget(instance); }
  const PrefixIndex& prefixes() const { return prefixes_; }

 private:
  InstanceId cache_aware(std::span<const Candidate> candidates, std::string_view text, TimePoint now);
  InstanceId least_loaded(std::span<const Candidate> candidates);
  InstanceId power_of_two(std::span<const Candidate> candidates);
  size_t below(size_t bound);

  PolicyConfig config_;
  std::mt19937_64 random_;
  uint64_t turn_ = 0;
  PrefixIndex prefixes_;
  TimePoint next_eviction_{};
};

struct PairChoice {
  InstanceId prefill, decode;
};

// Both sides by their own policy. Nothing: a side has no candidate.
std::optional<PairChoice> pick_pair(std::pair<Picker&, Picker&> pickers, std::span<const Candidate> prefills,
                                    std::span<const Candidate> decodes, std::string_view text, TimePoint now);

// Room ids: uniform in [0, 2^63), so that signed readers are safe.
std::vector<uint64_t> draw_rooms(std::mt19937_64& random, size_t count);

}  // namespace tandem::router
