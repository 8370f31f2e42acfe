// What the next prefill step computes, as a value. Pure.
// Rules: the request whose prompt was cut continues first; others follow in the policy's order; the first that does not
// fit ends the scan. A request leases the blocks of its whole prompt when it starts, so a later chunk never waits for
// blocks.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tandem::scheduler {

enum class WaitingOrder : uint8_t { kFcfs, kLpm, kRandom, kLof };

struct PrefillCandidate {
  int32_t num_tokens = 0;          // still to compute; at least 1
  int32_t blocks_needed = 0;       // to lease before it starts; 0 for the one that continues
  int32_t growth_blocks = 0;       // worst case of blocks for its output, clipped; not for the one that continues
  int32_t pinned_blocks = 0;       // evictable cached blocks that it would hold, so that they stop being available
  int32_t tokens_before_rows = 0;  // leading tokens of num_tokens that need no logits
  bool wants_rows = false;         // every later token needs logits (input log-probabilities)
  bool started = false;            // continues a cut prompt; only the first candidate may
};

struct PrefillLimits {
  int32_t chunk_tokens = 0;        // 0: prompts are not cut
  int32_t max_prefill_tokens = 0;  // the first request may exceed it when prompts are not cut
  int32_t block_tokens = 1;
  int32_t free_slots = 0;        // sequences that may start
  int64_t available_blocks = 0;  // free and evictable
  int64_t reserved_blocks = 0;   // expected growth of what runs
  int32_t logit_rows = 0;        // of one step
};

struct PrefillChunk {
  int32_t candidate = 0;  // index
  int32_t num_tokens = 0;
  bool completes = false;  // the prompt ends here
};

struct PrefillPlan {
  std::vector<PrefillChunk> chunks;
  int32_t num_tokens = 0;
};

PrefillPlan plan_prefill(std::span<const PrefillCandidate> candidates, const PrefillLimits& limits);

// Tokens of one prefill step at most.
int32_t max_step_tokens(int32_t chunk_tokens, int32_t max_prefill_tokens, int32_t max_prompt_tokens);

// The order in which waiting requests are tried.
struct WaitingRank {
  int32_t cached_tokens = 0;   // longest prefix match first
  int32_t max_new_tokens = 0;  // longest output first
};
std::vector<size_t> order_waiting(WaitingOrder order, std::span<const WaitingRank> waiting, uint64_t seed);

}  // namespace tandem::scheduler
