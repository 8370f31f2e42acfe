#include "parallel/step_protocol.h"

#include <gtest/gtest.h>

#include <vector>

namespace tandem::parallel {
namespace {

StepVote vote(StepKind kind, uint32_t tokens) {
  StepVote v;
  v.step = 7;
  v.kind = kind;
  v.num_tokens = tokens;
  return v;
}

TEST(Decide, StrongestKindWinsInAnyOrder) {
  const std::vector<StepVote> extend = {vote(StepKind::kDecode, 3), vote(StepKind::kExtend, 100),
                                        vote(StepKind::kNone, 0)};
  EXPECT_EQ(decide(extend).kind, StepKind::kExtend);
  const std::vector<StepVote> decode = {vote(StepKind::kNone, 0), vote(StepKind::kDecode, 3), vote(StepKind::kIdle, 0)};
  EXPECT_EQ(decide(decode).kind, StepKind::kDecode);
}

TEST(Decide, RanksWithoutTokensMakeNoStep) {
  const std::vector<StepVote> votes = {vote(StepKind::kIdle, 0), vote(StepKind::kNone, 0)};
  EXPECT_EQ(decide(votes).kind, StepKind::kNone);
  EXPECT_EQ(decide(votes).total_tokens, 0u);
}

TEST(Decide, SizesAreMaximumAndSumOverRanks) {
  const std::vector<StepVote> votes = {vote(StepKind::kDecode, 3), vote(StepKind::kDecode, 9),
                                       vote(StepKind::kIdle, 0)};
  const StepDecision decision = decide(votes);
  EXPECT_EQ(decision.step, 7u);
  EXPECT_EQ(decision.max_tokens, 9u);
  EXPECT_EQ(decision.total_tokens, 12u);
  EXPECT_EQ(decision.num_ranks, 3u);
}

TEST(Decide, ShutdownAndTheEndOfASleepNeedEveryRank) {
  std::vector<StepVote> votes = {vote(StepKind::kNone, 0), vote(StepKind::kNone, 0)};
  votes[0].wants_shutdown = votes[0].sleep_ready = 1;
  EXPECT_EQ(decide(votes).shutdown, 0);
  EXPECT_EQ(decide(votes).sleep_ready, 0);
  votes[1].wants_shutdown = votes[1].sleep_ready = 1;
  EXPECT_EQ(decide(votes).shutdown, 1);
  EXPECT_EQ(decide(votes).sleep_ready, 1);
}

TEST(Decide, OrdersToProfileWaitForTheLastRankAndOneRefusalIsAllRanks) {
  std::vector<StepVote> votes = {vote(StepKind::kDecode, 1), vote(StepKind::kNone, 0)};
  votes[0].profile_version = 3;
  votes[1].profile_version = 2;
  votes[1].profile_refused = 2;
  EXPECT_EQ(decide(votes).profile_version, 2u);
  EXPECT_EQ(decide(votes).profile_refused, 2u);
}

TEST(Decide, LongestSleepAndOldestPreparedChangeApply) {
  std::vector<StepVote> votes = {vote(StepKind::kDecode, 1), vote(StepKind::kDecode, 1)};
  votes[0].sleep_ms = 20;
  votes[1].sleep_ms = 90;
  votes[0].change_version = 5;
  votes[1].change_version = 4;
  EXPECT_EQ(decide(votes).sleep_ms, 90u);
  EXPECT_EQ(decide(votes).change_version, 4u);
}

TEST(Decide, AHeldRankKeepsDecodeBackButNotPrefill) {
  std::vector<StepVote> votes = {vote(StepKind::kDecode, 3), vote(StepKind::kNone, 0)};
  votes[1].holds = 1;
  EXPECT_EQ(decide(votes).holds, 1);
  EXPECT_EQ(decide(votes).kind, StepKind::kNone);
  EXPECT_EQ(decide(votes).total_tokens, 0u);
  votes[1].kind = StepKind::kExtend;
  votes[1].num_tokens = 50;
  EXPECT_EQ(decide(votes).kind, StepKind::kExtend);
  EXPECT_EQ(decide(votes).max_tokens, 50u) << "the decode batch is left";
  votes[1] = vote(StepKind::kDecode, 1);
  EXPECT_EQ(decide(votes).holds, 0);
  EXPECT_EQ(decide(votes).total_tokens, 4u);
}

TEST(Decide, DecodeWaitsUntilEveryRankKnowsTheNewestHold) {
  std::vector<StepVote> votes = {vote(StepKind::kDecode, 3), vote(StepKind::kDecode, 3)};
  votes[0].hold_version = 2;
  votes[1].hold_version = 1;
  EXPECT_EQ(decide(votes).kind, StepKind::kNone);
  votes[1].hold_version = 2;
  EXPECT_EQ(decide(votes).kind, StepKind::kDecode);
  votes[1].hold_version = 1;
  votes[1].holds = votes[1].wants_shutdown = 1;
  EXPECT_EQ(decide(votes).kind, StepKind::kDecode) << "a rank that leaves holds nobody up";
}

TEST(Decide, ARankThatFollowsLeavesTheSplitToOthers) {
  std::vector<StepVote> votes(3);
  votes[0].kind = StepKind::kDecode;
  votes[0].num_tokens = 6;
  votes[0].can_split = votes[2].can_split = 1;
  EXPECT_EQ(decide(votes).two_batches, 0);
  votes[1].follows = 1;
  EXPECT_EQ(decide(votes).two_batches, 1);
  EXPECT_EQ(decide(votes).total_tokens, 6u);
}

TEST(DecideDeathTest, VotesForDifferentStepsAreABug) {
  std::vector<StepVote> votes = {vote(StepKind::kDecode, 1), vote(StepKind::kDecode, 1)};
  votes[1].step = 8;
  EXPECT_DEATH(decide(votes), "vote.step == decision.step");
}

}  // namespace
}  // namespace tandem::parallel
