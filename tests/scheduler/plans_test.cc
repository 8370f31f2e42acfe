#include <gtest/gtest.h>

#include <random>

#include "scheduler/decode_plan.h"
#include "scheduler/prefill_plan.h"

namespace tandem::scheduler {
namespace {

PrefillLimits roomy() {
  PrefillLimits limits;
  limits.chunk_tokens = 64;
  limits.max_prefill_tokens = 1000;
  limits.block_tokens = 4;
  limits.free_slots = 8;
  limits.available_blocks = 1000;
  limits.logit_rows = 100;
  return limits;
}
PrefillCandidate prompt(int32_t tokens) {
  PrefillCandidate candidate;
  candidate.num_tokens = tokens;
  candidate.blocks_needed = (tokens + 3) / 4;
  return candidate;
}

TEST(PlanPrefill, PromptOverTheChunkIsCutOnABlockBorderAndEndsTheScan) {
  const std::vector<PrefillCandidate> candidates = {prompt(10), prompt(90), prompt(5)};
  const PrefillPlan plan = plan_prefill(candidates, roomy());
  ASSERT_EQ(plan.chunks.size(), 2u);
  EXPECT_TRUE(plan.chunks[0].completes);
  EXPECT_EQ(plan.chunks[1].num_tokens, 52) << "10 tokens count as 12: whole blocks";
  EXPECT_FALSE(plan.chunks[1].completes);
}

TEST(PlanPrefill, CutPromptContinuesFirstWithoutNewBlocksOrSlots) {
  PrefillLimits limits = roomy();
  limits.free_slots = 0;
  limits.available_blocks = 0;
  std::vector<PrefillCandidate> candidates = {prompt(30), prompt(5)};
  candidates[0].started = true;
  candidates[0].blocks_needed = 0;
  const PrefillPlan plan = plan_prefill(candidates, limits);
  ASSERT_EQ(plan.chunks.size(), 1u);
  EXPECT_EQ(plan.chunks[0].num_tokens, 30);
}

TEST(PlanPrefill, FirstThatDoesNotFitEndsTheScan) {
  PrefillLimits limits = roomy();
  limits.available_blocks = 10;
  limits.reserved_blocks = 3;
  std::vector<PrefillCandidate> candidates = {prompt(8), prompt(24), prompt(4)};
  EXPECT_EQ(plan_prefill(candidates, limits).chunks.size(), 1u) << "no skipping ahead to the third";
  candidates[0].growth_blocks = 6;
  EXPECT_TRUE(plan_prefill(candidates, limits).chunks.empty());
  limits = roomy();
  limits.free_slots = 1;
  EXPECT_EQ(plan_prefill(candidates, limits).chunks.size(), 1u);
}

TEST(PlanPrefill, WithoutChunkingOnlyTheFirstMayExceedTheBudget) {
  PrefillLimits limits = roomy();
  limits.chunk_tokens = 0;
  limits.max_prefill_tokens = 50;
  EXPECT_EQ(plan_prefill(std::vector{prompt(90), prompt(5)}, limits).chunks.size(), 1u);
  EXPECT_EQ(plan_prefill(std::vector{prompt(90), prompt(5)}, limits).num_tokens, 90);
  EXPECT_EQ(plan_prefill(std::vector{prompt(20), prompt(90)}, limits).chunks.size(), 1u);
  EXPECT_EQ(plan_prefill(std::vector{prompt(20), prompt(20), prompt(20)}, limits).chunks.size(), 2u);
}

TEST(PlanPrefill, LogitRowsLimitTheChunkOfAPromptThatWantsThem) {
  PrefillLimits limits = roomy();
  limits.logit_rows = 10;
  PrefillCandidate wants = prompt(40);
  wants.wants_rows = true;
  wants.tokens_before_rows = 8;
  const PrefillPlan plan = plan_prefill(std::vector{wants, prompt(3)}, limits);
  ASSERT_EQ(plan.chunks.size(), 1u);
  EXPECT_EQ(plan.chunks[0].num_tokens, 16) << "8 without rows and 10 with, down to a block border";
}

TEST(PlanPrefill, KeepsItsLimitsOverRandomInput) {
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    std::mt19937_64 random(seed);
    PrefillLimits limits;
    limits.block_tokens = 1 << (random() % 4);
    limits.chunk_tokens = random() % 3 == 0 ? 0 : limits.block_tokens * int32_t(1 + random() % 20);
    limits.max_prefill_tokens = limits.block_tokens * int32_t(1 + random() % 40);
    limits.free_slots = int32_t(random() % 6);
    limits.available_blocks = int64_t(random() % 80);
    limits.reserved_blocks = int64_t(random() % 20);
    limits.logit_rows = limits.block_tokens + int32_t(random() % 20);
    std::vector<PrefillCandidate> candidates(random() % 8);
    for (PrefillCandidate& c : candidates) {
      c.num_tokens = 1 + int32_t(random() % 100);
      c.blocks_needed = (c.num_tokens + limits.block_tokens - 1) / limits.block_tokens;
      c.growth_blocks = int32_t(random() % 4);
      c.wants_rows = random() % 4 == 0;
      c.tokens_before_rows = int32_t(random() % 10);
    }
    if (!candidates.empty() && random() % 2 == 0) candidates[0].started = true;
    const PrefillPlan plan = plan_prefill(candidates, limits);
    int64_t blocks = 0;
    int32_t slots = 0, tokens = 0, rows = 0;
    for (size_t i = 0; i < plan.chunks.size(); ++i) {
      const PrefillChunk& chunk = plan.chunks[i];
      const PrefillCandidate& c = candidates[size_t(chunk.candidate)];
      ASSERT_EQ(chunk.candidate, int32_t(i)) << "no skipping, seed " << seed;
      ASSERT_GT(chunk.num_tokens, 0);
      ASSERT_EQ(chunk.completes, chunk.num_tokens == c.num_tokens);
      if (!chunk.completes) {
        ASSERT_EQ(i, plan.chunks.size() - 1) << "at most one cut prompt, the last";
        ASSERT_EQ(chunk.num_tokens % limits.block_tokens, 0);
      }
      if (!c.started) {
        blocks += c.blocks_needed + c.growth_blocks;
        ++slots;
      }
      tokens += chunk.num_tokens;
      rows += c.wants_rows ? std::max(1, chunk.num_tokens - c.tokens_before_rows) : 1;
    }
    ASSERT_EQ(tokens, plan.num_tokens);
    ASSERT_LE(slots, limits.free_slots) << seed;
    ASSERT_LE(blocks, std::max<int64_t>(0, limits.available_blocks - limits.reserved_blocks)) << seed;
    ASSERT_LE(rows, limits.logit_rows) << seed;
    int32_t most = INT32_MAX;
    if (limits.chunk_tokens > 0) most = std::min(limits.chunk_tokens, limits.max_prefill_tokens);
    if (limits.chunk_tokens == 0 && plan.chunks.size() > 1) most = limits.max_prefill_tokens;
    ASSERT_LE(tokens, most) << seed;
    // Something always runs when the first has what it needs.
    const bool can_run = !candidates.empty() && candidates[0].started;
    ASSERT_FALSE(can_run && plan.chunks.empty()) << seed;
  }
}

TEST(OrderWaiting, PoliciesSortAsNamed) {
  const std::vector<WaitingRank> waiting = {{5, 10}, {20, 30}, {5, 20}};
  EXPECT_EQ(order_waiting(WaitingOrder::kFcfs, waiting, 1), (std::vector<size_t>{0, 1, 2}));
  EXPECT_EQ(order_waiting(WaitingOrder::kLpm, waiting, 1), (std::vector<size_t>{1, 0, 2}));
  EXPECT_EQ(order_waiting(WaitingOrder::kLof, waiting, 1), (std::vector<size_t>{1, 2, 0}));
  const std::vector<WaitingRank> many(50);
  EXPECT_EQ(order_waiting(WaitingOrder::kRandom, many, 7), order_waiting(WaitingOrder::kRandom, many, 7));
  EXPECT_NE(order_waiting(WaitingOrder::kRandom, many, 7), order_waiting(WaitingOrder::kRandom, many, 8));
}

TEST(DecodePlan, GrowthCountsBlocksThatTheNextRowNeeds) {
  const std::vector<RunningSequence> running = {{4, 0, 1, 10, true}, {4, 1, 1, 10, true}, {3, 5, 2, 10, true}};
  EXPECT_EQ(blocks_to_grow(running, 4), 1);
}

TEST(DecodePlan, VictimHasFewestOutputsThenLongestPromptThenIsYoungest) {
  std::vector<RunningSequence> running = {{10, 5, 4, 9, true}, {10, 2, 3, 9, true}, {30, 2, 8, 9, true}};
  EXPECT_EQ(choose_victim(running), 2u);
  running[2].may_retract = false;
  EXPECT_EQ(choose_victim(running), 1u);
  running = {{10, 2, 3, 9, true}, {10, 2, 3, 9, true}};
  EXPECT_EQ(choose_victim(running), 1u);
  running.pop_back();
  EXPECT_EQ(choose_victim(running), std::nullopt) << "never the last";
}

TEST(DecodePlan, NewTokenRatioDecaysToItsFloorAndRisesOnRetraction) {
  NewTokenRatio ratio(1.0);
  EXPECT_DOUBLE_EQ(ratio.value(), 0.7);
  for (int i = 0; i < 300; ++i) ratio.decay();
  EXPECT_NEAR(ratio.value(), (0.7 + 0.098) / 2, 1e-9);
  for (int i = 0; i < 1000; ++i) ratio.decay();
  EXPECT_NEAR(ratio.value(), 0.098, 1e-9);
  ratio.retracted(100, 999, 5);
  EXPECT_DOUBLE_EQ(ratio.value(), 0.2);
  ratio.retracted(5000, 999, 5);
  EXPECT_DOUBLE_EQ(ratio.value(), 1.0);
  EXPECT_DOUBLE_EQ(NewTokenRatio(5.0).value(), 1.0);
}

TEST(DecodePlan, AdmissionFollowsTheReserveFormula) {
  DecodeLoad load;
  load.free_tokens = 1000;
  EXPECT_EQ(allocatable_tokens(load, 100), 1000);
  load.num_running = 2;
  load.num_receiving = 1;
  load.num_arrived = 1;
  EXPECT_EQ(allocatable_tokens(load, 100), 600);
  load.largest_need = 900;
  load.retractable_tokens = 200;
  EXPECT_EQ(allocatable_tokens(load, 100), 300) << "one request must be able to finish if the others give way";
  load.retracted_tokens = 50;
  load.num_retracted = 1;
  EXPECT_EQ(allocatable_tokens(load, 100), 150);

  EXPECT_EQ(admit({100, 500}, 200, 1000, 100), 200);
  EXPECT_EQ(admit({100, 500}, 199, 1000, 100), std::nullopt);
  EXPECT_EQ(admit({100, 500}, 400, 100, 100), std::nullopt) << "could not finish even if all others gave way";
  EXPECT_EQ(admit({100, 500}, 500, 100, 100), 200);
  EXPECT_EQ(admit({100, 20}, 120, 0, 512), 120) << "it reserves no more than it may produce";
}

}  // namespace
}  // namespace tandem::scheduler
