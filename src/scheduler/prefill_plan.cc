#include "scheduler/prefill_plan.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "base/check.h"

namespace tandem::scheduler {
namespace {

// Longest leading part of the candidate that `tokens` and `rows` allow. A cut falls on a block border.
int32_t longest_part(const PrefillCandidate& candidate, int32_t tokens, int32_t rows, int32_t block_tokens) {
  int32_t part = std::min(candidate.num_tokens, tokens);
  if (candidate.wants_rows) part = std::min(part, candidate.tokens_before_rows + rows);
  if (part < candidate.num_tokens) part -= part % block_tokens;
  return part;
}

int32_t rows_of(const PrefillCandidate& candidate, int32_t part) {
  if (candidate.wants_rows) return std::max(1, part - candidate.tokens_before_rows);
  return 1;
}

}  // namespace

int32_t max_step_tokens(int32_t chunk_tokens, int32_t max_prefill_tokens, int32_t max_prompt_tokens) {
  if (chunk_tokens > 0) return std::min(chunk_tokens, max_prefill_tokens);
  return std::max(max_prefill_tokens, max_prompt_tokens);
}

PrefillPlan plan_prefill(std::span<const PrefillCandidate> candidates, const PrefillLimits& limits) {
  const bool cuts = limits.chunk_tokens > 0;
  int32_t tokens = cuts ? std::min(limits.chunk_tokens, limits.max_prefill_tokens) : limits.max_prefill_tokens;
  int64_t blocks = limits.available_blocks - limits.reserved_blocks;
  int32_t slots = limits.free_slots, rows = limits.logit_rows;
  PrefillPlan plan;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const PrefillCandidate& candidate = candidates[i];
    CHECK(candidate.num_tokens > 0);
    CHECK(!candidate.started || i == 0);
    if (rows < 1 || tokens < 1) break;
    if (!candidate.started) {
      const int64_t cost = int64_t(candidate.blocks_needed) + candidate.growth_blocks + candidate.pinned_blocks;
      if (slots < 1 || cost > blocks) break;
      slots -= 1;
      blocks -= cost;
    }
    const bool may_exceed = !cuts && plan.chunks.empty();
    const int32_t part = longest_part(candidate, may_exceed ? INT32_MAX : tokens, rows, limits.block_tokens);
    // Without chunking a prompt is cut only where the rows of its log-probabilities demand it.
    const bool cut_by_tokens = !cuts && !may_exceed && candidate.num_tokens > tokens;
    if (part < 1 || cut_by_tokens) break;
    const bool completes = part == candidate.num_tokens;
    plan.chunks.push_back({int32_t(i), part, completes});
    plan.num_tokens += part;
    rows -= rows_of(candidate, part);
    // The budget counts whole blocks, as the log line does.
    tokens -= (part + limits.block_tokens - 1) / limits.block_tokens * limits.block_tokens;
    if (!completes) break;
  }
  return plan;
}

std::vector<size_t> order_waiting(WaitingOrder order, std::span<const WaitingRank> waiting, uint64_t seed) {
  std::vector<size_t> indices(waiting.size());
  std::iota(indices.begin(), indices.end(), size_t{0});
  switch (order) {
    case WaitingOrder::kFcfs: break;
    case WaitingOrder::kLpm:
      std::ranges::stable_sort(indices,
                               [&](size_t a, size_t b) { return waiting[a].cached_tokens > waiting[b].cached_tokens; });
      break;
    case WaitingOrder::kLof:
      std::ranges::stable_sort(
          indices, [&](size_t a, size_t b) { return waiting[a].max_new_tokens > waiting[b].max_new_tokens; });
      break;
    case WaitingOrder::kRandom: {
      std::mt19937_64 random(seed);
      for (size_t i = indices.size(); i > 1; --i) std::swap(indices[i - 1], indices[random() % i]);
      break;
    }
  }
  return indices;
}

}  // namespace tandem::scheduler
