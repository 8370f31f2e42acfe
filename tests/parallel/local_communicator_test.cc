#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "parallel/communicator.h"

namespace tandem::parallel {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

StepVote make_vote(uint64_t step, uint32_t tokens) {
  StepVote vote;
  vote.step = step;
  vote.num_tokens = tokens;
  vote.kind = tokens > 0 ? StepKind::kDecode : StepKind::kIdle;
  return vote;
}

// What a rank of the lock-step test puts into its vote: differs by rank and step, some ranks idle.
uint32_t tokens_of(int32_t rank, uint64_t step) { return uint32_t((step * 7 + uint64_t(rank) * 3) % 5); }

void run_rank(Communicator& communicator, uint64_t num_steps, std::vector<StepDecision>& decisions) {
  const SystemClock clock;
  for (uint64_t step = 1; step <= num_steps; ++step) {
    communicator.post_vote(make_vote(step, tokens_of(communicator.rank().value, step)), clock.now());
    while (true) {
      auto decision = communicator.poll_decision(clock.now());
      ASSERT_TRUE(decision) << decision.error().message;
      if (decision.value()) {
        decisions.push_back(**decision);
        break;
      }
      communicator.wait(seconds(5));
    }
  }
}

TEST(LocalCommunicator, RanksOnThreadsTakeTheSameDecisions) {
  for (int32_t num_ranks = 1; num_ranks <= 8; ++num_ranks) {
    const uint64_t num_steps = 300;
    auto ranks = make_local_communicators(num_ranks, seconds(30));
    std::vector<std::vector<StepDecision>> decisions(static_cast<size_t>(num_ranks));
    {
      std::vector<std::jthread> threads;
      for (int32_t r = 0; r < num_ranks; ++r) {
        threads.emplace_back([&, r] { run_rank(*ranks[size_t(r)], num_steps, decisions[size_t(r)]); });
      }
    }
    ASSERT_EQ(decisions[0].size(), num_steps);
    for (uint64_t step = 1; step <= num_steps; ++step) {
      uint32_t sum = 0;
      for (int32_t r = 0; r < num_ranks; ++r) sum += tokens_of(r, step);
      EXPECT_EQ(decisions[0][step - 1].step, step);
      EXPECT_EQ(decisions[0][step - 1].total_tokens, sum);
    }
    for (const auto& others : decisions) EXPECT_EQ(others, decisions[0]);
  }
}

TEST(LocalCommunicator, OneThreadCanDriveAllRanks) {
  auto ranks = make_local_communicators(3, seconds(1));
  const TimePoint now{};
  for (uint64_t step = 40; step < 45; ++step) {
    for (size_t r = 0; r < 3; ++r) {
      ranks[r]->post_vote(make_vote(step, uint32_t(r)), now);
      if (r < 2) {
        EXPECT_FALSE(ranks[r]->poll_decision(now)->has_value());
      }
    }
    for (auto& rank : ranks) {
      auto decision = rank->poll_decision(now);
      ASSERT_TRUE(decision);
      ASSERT_TRUE(decision.value());
      EXPECT_EQ((*decision)->step, step);
      EXPECT_EQ((*decision)->total_tokens, 3u);
    }
    EXPECT_FALSE(ranks[0]->poll_decision(now)->has_value()) << "a decision is given once";
  }
}

TEST(LocalCommunicator, AFastRankIsOneVoteAheadAndSlowRanksStillReadTheOldVotes) {
  auto ranks = make_local_communicators(2, seconds(1));
  const TimePoint now{};
  ranks[0]->post_vote(make_vote(1, 10), now);
  ranks[1]->post_vote(make_vote(1, 1), now);
  ASSERT_TRUE(ranks[0]->poll_decision(now)->has_value());
  ranks[0]->post_vote(make_vote(2, 20), now);
  const auto first = ranks[1]->poll_decision(now);
  ASSERT_TRUE(first->has_value());
  EXPECT_EQ((**first).total_tokens, 11u);
  ranks[1]->post_vote(make_vote(2, 2), now);
  EXPECT_EQ((**ranks[1]->poll_decision(now)).total_tokens, 22u);
  EXPECT_EQ((**ranks[0]->poll_decision(now)).total_tokens, 22u);
}

TEST(LocalCommunicator, MissingRanksAreNamedAfterTheDeadlineAndTheFailureIsFinal) {
  auto ranks = make_local_communicators(4, seconds(2));
  const TimePoint start{};
  ranks[0]->post_vote(make_vote(17, 1), start);
  ranks[2]->post_vote(make_vote(17, 1), start);
  EXPECT_FALSE(ranks[0]->poll_decision(start + milliseconds(1999))->has_value());
  const auto lost = ranks[0]->poll_decision(start + seconds(2));
  ASSERT_FALSE(lost);
  EXPECT_EQ(lost.error().code, ErrorCode::kPeerLost);
  EXPECT_NE(lost.error().message.find("step 17"), std::string::npos) << lost.error().message;
  EXPECT_NE(lost.error().message.find("rank(s) 1, 3 of 4"), std::string::npos) << lost.error().message;
  ranks[1]->post_vote(make_vote(17, 1), start);
  ranks[3]->post_vote(make_vote(17, 1), start);
  EXPECT_FALSE(ranks[0]->poll_decision(start + seconds(2)));
  ranks[0]->post_vote(make_vote(18, 1), start);  // ignored
  EXPECT_TRUE(ranks[1]->poll_decision(start)->has_value()) << "the others judge for themselves";
}

TEST(LocalCommunicator, WaitEndsWhenTheLastVoteArrives) {
  auto ranks = make_local_communicators(2, seconds(30));
  const SystemClock clock;
  const TimePoint start = clock.now();
  ranks[0]->post_vote(make_vote(1, 1), start);
  std::jthread other([&] { ranks[1]->post_vote(make_vote(1, 1), clock.now()); });
  ranks[0]->wait(seconds(20));
  EXPECT_LT(clock.now() - start, seconds(10));
  EXPECT_TRUE(ranks[0]->poll_decision(clock.now())->has_value());
}

TEST(LocalCommunicator, AnIdleRankWakesWhenAnotherVotesForTheNextStep) {
  auto ranks = make_local_communicators(2, seconds(30));
  const SystemClock clock;
  const TimePoint start = clock.now();
  std::jthread other([&] { ranks[1]->post_vote(make_vote(1, 1), clock.now()); });
  ranks[0]->wait(seconds(20));
  EXPECT_LT(clock.now() - start, seconds(10));
}

TEST(LocalCommunicator, WakeEndsAWaitAndTimeoutEndsItToo) {
  auto ranks = make_local_communicators(2, seconds(30));
  const SystemClock clock;
  const TimePoint start = clock.now();
  ranks[0]->wait(milliseconds(5));
  EXPECT_GE(clock.now() - start, milliseconds(5));
  std::jthread other([&] { ranks[0]->wake(); });
  ranks[0]->wait(seconds(20));
  EXPECT_LT(clock.now() - start, seconds(10));
}

TEST(LocalCommunicatorDeathTest, StepsOutOfOrderAreABug) {
  auto ranks = make_local_communicators(1, seconds(1));
  ranks[0]->post_vote(make_vote(1, 1), TimePoint{});
  EXPECT_DEATH(ranks[0]->post_vote(make_vote(2, 1), TimePoint{}), "num_decided_ == num_posted_");
  ASSERT_TRUE(ranks[0]->poll_decision(TimePoint{})->has_value());
  EXPECT_DEATH(ranks[0]->post_vote(make_vote(3, 1), TimePoint{}), "vote.step == step_ \\+ 1");
}

}  // namespace
}  // namespace tandem::parallel
