// Sleeps before steps and held decode, under a virtual clock: what goes on meanwhile, and when they end.
#include <gtest/gtest.h>

#include "tests/engine/pair_rig.h"

namespace tandem::testing {
namespace {

using namespace std::chrono_literals;
using engine::HoldCommand;
using engine::SlowDownCommand;

// Several combined engines of one group in one thread.
class Ranks {
 public:
  static constexpr Duration kVoteDeadline = 10s;

  explicit Ranks(int32_t count, const engine::EngineConfig& config = small_config())
      : communicators_(parallel::make_local_communicators(count, kVoteDeadline)) {
    clock.advance(1s);
    for (auto& communicator : communicators_) {
      ranks.push_back(std::make_unique<Rig>(config, nullptr, &clock, 1, communicator.get()));
    }
  }
  Rig& operator[](size_t i) { return *ranks[i]; }
  engine::EngineSnapshot state(size_t i) { return ranks[i]->engine->snapshot(); }
  void to_all(const engine::Command& command) {
    for (auto& rank : ranks) EXPECT_EQ(rank->engine->submit(command), PushResult::kPushed);
  }
  // Turns of all ranks for this long, as often as an idle rank looks.
  void run_for(Duration time) {
    for (const TimePoint end = clock.now() + time; clock.now() < end; clock.advance(20ms)) turn();
  }
  // Without time: until nothing moves any more.
  void settle() {
    for (int quiet = 0, i = 0; quiet < 4 && i < 10000; ++i) quiet = turn() ? 0 : quiet + 1;
  }
  bool turn() {
    bool any = false;
    for (auto& rank : ranks) any |= rank->engine->turn();
    return any;
  }
  int64_t forwards(size_t i) { return ranks[i]->model.forwards; }

  ManualClock clock;

 private:
  std::vector<std::unique_ptr<parallel::Communicator>> communicators_;

 public:
  std::vector<std::unique_ptr<Rig>> ranks;
};

void expect_whole(Rig& rig, uint64_t id, const std::vector<int32_t>& prompt, int32_t count) {
  EXPECT_EQ(rig.answers[id].tokens, expected_tokens(prompt, count, Rig::kVocab)) << "request " << id;
  ASSERT_TRUE(rig.answers[id].finish.has_value()) << "request " << id;
  EXPECT_EQ(rig.answers[id].finish->kind, api::FinishKind::kLength);
}

TEST(SlowDown, EachStepOfEveryRankComesAfterItsSleep) {
  Ranks group(2);
  group.to_all(SlowDownCommand{2000});
  group.settle();
  EXPECT_FALSE(group.state(0).asleep) << "without a step there is nothing to sleep for";
  const auto prompt = prompt_of(1, 12);
  group[0].submit(greedy_request(1, prompt, 3));
  group.settle();
  EXPECT_TRUE(group.state(0).asleep);
  EXPECT_TRUE(group.state(1).asleep) << "an idle rank sleeps as long";
  for (int64_t step = 0; step < 3; ++step) {
    const TimePoint begin = group.clock.now();
    while (group.forwards(0) == step && group.clock.now() - begin < 5s) group.run_for(20ms);
    EXPECT_GE(group.clock.now() - begin, 1950ms) << "step " << step;
    EXPECT_LE(group.clock.now() - begin, 2100ms) << "step " << step;
    EXPECT_EQ(group.forwards(1), step + 1) << "takes part in each step";
  }
  expect_whole(group[0], 1, prompt, 3);
}

TEST(SlowDown, ASleepLongerThanTheVotesDeadlineLosesNobodyAndCountsAsProgress) {
  Ranks group(2);
  group.to_all(SlowDownCommand{180000});
  group[1].submit(greedy_request(1, prompt_of(1, 12), 1));
  group.run_for(179s);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_FALSE(group.state(i).lost);
    EXPECT_LE(group.clock.now() - group.state(i).last_progress, 100ms);
    EXPECT_EQ(group.state(i).sleep_ms, 180000u);
    EXPECT_EQ(group.forwards(i), 0);
  }
  group.run_for(2s);
  expect_whole(group[1], 1, prompt_of(1, 12), 1);
}

TEST(SlowDown, NullEndsASleepAtOnceAsSoonAsEveryRankHasIt) {
  Ranks group(2);
  group[0].engine->submit(SlowDownCommand{60000});  // the other's comes later
  group[0].submit(greedy_request(1, prompt_of(1, 12), 4));
  group[1].submit(greedy_request(2, prompt_of(2, 9), 4));
  group.settle();
  EXPECT_TRUE(group.state(0).asleep && group.state(1).asleep) << "all sleep as the one that knows";
  group[1].engine->submit(SlowDownCommand{60000});
  group.run_for(500ms);
  group[0].engine->submit(SlowDownCommand{0});
  group.run_for(500ms);
  EXPECT_EQ(group.forwards(0), 0);
  group[1].engine->submit(SlowDownCommand{0});
  group.settle();
  expect_whole(group[0], 1, prompt_of(1, 12), 4);
  expect_whole(group[1], 2, prompt_of(2, 9), 4);
}

TEST(SlowDown, AnotherLengthAppliesToTheSleepUnderWay) {
  Ranks group(1);
  group.to_all(SlowDownCommand{180000});
  group[0].submit(greedy_request(1, prompt_of(1, 12), 1));
  group.run_for(1s);
  group.to_all(SlowDownCommand{3000});
  group.run_for(1900ms);
  EXPECT_EQ(group.forwards(0), 0);
  group.run_for(200ms);
  EXPECT_EQ(group.forwards(0), 1);
}

TEST(SlowDown, HandoversGoOnAndRunningClimbsToItsMaximum) {
  PairOptions options;
  options.decode.max_running_requests = 6;
  options.decode.num_reserved_decode_tokens = 4;
  Pair pair(options);
  EXPECT_EQ(pair.decode->rig.engine->submit(SlowDownCommand{180000}), PushResult::kPushed);
  pair.submit(greedy_request(0, prompt_of(0, 10), 4), 100);
  pair.run_until_idle();
  EXPECT_EQ(pair.decode->rig.engine->snapshot().running, 1);
  EXPECT_TRUE(pair.decode->rig.engine->snapshot().asleep);
  for (uint64_t id = 1; id < 10; ++id) pair.submit(greedy_request(id, prompt_of(id, 10), 4), 100 + id);
  pair.run_until_idle();
  const engine::EngineSnapshot filled = pair.decode->rig.engine->snapshot();
  EXPECT_EQ(filled.running, 6);
  EXPECT_EQ(filled.queued, 4) << "all ten are here, four without a slot";
  EXPECT_EQ(filled.handovers, 10u);
  EXPECT_EQ(pair.decode->rig.model.forwards, 0);
  EXPECT_EQ(pair.decode->rig.answers[9].tokens.size(), 1u) << "first tokens do not wait";
  pair.clock.advance(180s);
  pair.turn();
  EXPECT_EQ(pair.decode->rig.model.forwards, 1);
  for (uint64_t id = 0; id < 6; ++id) EXPECT_EQ(pair.decode->rig.answers[id].tokens.size(), 2u) << id;
  pair.decode->rig.engine->submit(SlowDownCommand{0});
  pair.run_until_idle();
  for (uint64_t id = 0; id < 10; ++id) expect_whole(pair.decode->rig, id, prompt_of(id, 10), 4);
  pair.expect_baseline();
}

TEST(SlowDown, ACancelDuringTheSleepEndsADecodingRequestAtOnce) {
  Ranks group(1);
  group[0].submit(greedy_request(1, prompt_of(1, 12), 40));
  group[0].submit(greedy_request(2, prompt_of(2, 12), 4));
  while (group[0].answers[1].tokens.empty()) group.turn();
  group.to_all(SlowDownCommand{60000});
  group.settle();
  ASSERT_TRUE(group.state(0).asleep);
  group[0].cancel(1);
  group.settle();
  ASSERT_TRUE(group[0].answers[1].finish.has_value());
  EXPECT_EQ(group[0].answers[1].finish->kind, api::FinishKind::kAbort);
  EXPECT_EQ(group.state(0).running, 1);
  group.to_all(SlowDownCommand{0});
  group.settle();
  expect_whole(group[0], 2, prompt_of(2, 12), 4);
  group[0].expect_baseline();
}

TEST(SlowDown, ACancelDuringTheSleepOfAPromptIsSafeToo) {
  Ranks group(1);
  group.to_all(SlowDownCommand{60000});
  group[0].submit(greedy_request(1, prompt_of(1, 50), 4));
  group[0].submit(greedy_request(2, prompt_of(2, 8), 4));
  group.settle();
  ASSERT_TRUE(group.state(0).asleep);
  group[0].cancel(1);
  group.settle();
  group.to_all(SlowDownCommand{0});
  group.settle();
  EXPECT_EQ(group[0].answers[1].finish->kind, api::FinishKind::kAbort);
  expect_whole(group[0], 2, prompt_of(2, 8), 4);
  group[0].expect_baseline();
}

TEST(SlowDown, EverythingCancelledDuringTheSleepLeavesAnIdleGroup) {
  Ranks group(2);
  group[0].submit(greedy_request(1, prompt_of(1, 12), 40));
  while (group[0].answers[1].tokens.empty()) group.turn();
  group.to_all(SlowDownCommand{2000});
  group.settle();
  group[0].cancel(1);
  group.run_for(3s);
  EXPECT_FALSE(group.state(0).asleep);
  EXPECT_FALSE(group.state(1).asleep);
  group[0].expect_baseline();
}

TEST(SlowDown, AProbeIsAnsweredWithoutWaiting) {
  Ranks group(1);
  group.to_all(SlowDownCommand{180000});
  api::EngineRequest probe = greedy_request(9, {0}, 1);
  probe.is_health_check = true;
  group[0].submit(probe);
  group.settle();
  EXPECT_TRUE(group[0].answers[9].finish.has_value());
}

TEST(SlowDown, ADrainEndsSleepsAndHoldsAtOnceAndForGood) {
  Ranks group(2);
  group.to_all(SlowDownCommand{180000});
  group.to_all(HoldCommand{1, 8, 300s});
  group[0].submit(greedy_request(1, prompt_of(1, 12), 4));
  group.settle();
  group.to_all(engine::DrainCommand{});
  group.to_all(SlowDownCommand{180000});
  group.to_all(HoldCommand{2, 8, 300s});
  group.settle();
  expect_whole(group[0], 1, prompt_of(1, 12), 4);
}

TEST(HoldAdmission, DecodeBeginsOnAllRanksWhenEachHasEnough) {
  Ranks group(2);
  group.to_all(HoldCommand{1, 3, 300s});
  for (uint64_t id = 0; id < 3; ++id) group[0].submit(greedy_request(id, prompt_of(id, 10), 6));
  group.run_for(20s);
  const int64_t prefills = group.forwards(0);
  EXPECT_EQ(group.state(0).running, 3) << "prompts are computed meanwhile";
  EXPECT_EQ(group[0].answers[2].tokens.size(), 1u);
  EXPECT_EQ(group.state(0).held_for, 3);
  EXPECT_EQ(group.state(1).held_for, 3);
  group[1].submit(greedy_request(10, prompt_of(10, 10), 6));
  group[1].submit(greedy_request(11, prompt_of(11, 10), 6));
  group.run_for(5s);
  EXPECT_EQ(group.state(1).running, 2);
  EXPECT_EQ(group[0].answers[0].tokens.size(), 1u) << "the other rank has not enough";
  group[1].submit(greedy_request(12, prompt_of(12, 10), 6));
  group.settle();
  EXPECT_EQ(group.state(0).held_for, 0);
  // Two more steps with prompts, then five decode steps of both ranks together.
  EXPECT_EQ(group.forwards(0), prefills + 2 + 5);
  EXPECT_EQ(group.forwards(1), group.forwards(0));
  for (uint64_t id = 0; id < 3; ++id) expect_whole(group[0], id, prompt_of(id, 10), 6);
  for (uint64_t id = 10; id < 13; ++id) expect_whole(group[1], id, prompt_of(id, 10), 6);
}

TEST(HoldAdmission, TheDeadlineBeginsWithWhatIsThere) {
  Ranks group(2);
  group.to_all(HoldCommand{1, 8, 4s});
  group[0].submit(greedy_request(1, prompt_of(1, 10), 3));
  group.run_for(3900ms);
  EXPECT_EQ(group[0].answers[1].tokens.size(), 1u);
  group.run_for(200ms);
  expect_whole(group[0], 1, prompt_of(1, 10), 3);
  EXPECT_EQ(group.state(0).held_for, 0);
  EXPECT_EQ(group.state(1).held_for, 0);
  group[1].submit(greedy_request(2, prompt_of(2, 10), 3));
  group.settle();
  expect_whole(group[1], 2, prompt_of(2, 10), 3);
}

TEST(HoldAdmission, NullReleasesAndOrdersThatReachRanksApartAgreeInTheEnd) {
  Ranks group(2);
  group[0].submit(greedy_request(1, prompt_of(1, 10), 30));
  while (group[0].answers[1].tokens.empty()) group.turn();
  group[1].engine->submit(HoldCommand{1, 5, 300s});  // only here yet
  group.settle();
  const size_t before = group[0].answers[1].tokens.size();
  group.run_for(1s);
  EXPECT_EQ(group[0].answers[1].tokens.size(), before) << "one rank that holds is enough";
  group[1].engine->submit(HoldCommand{2, 0, 0s});
  group.run_for(1s);
  EXPECT_EQ(group[0].answers[1].tokens.size(), before) << "the first rank does not know the newest order";
  group[0].engine->submit(HoldCommand{1, 5, 300s});
  group[0].engine->submit(HoldCommand{2, 0, 0s});
  group.settle();
  expect_whole(group[0], 1, prompt_of(1, 10), 30);
}

TEST(HoldAdmission, AnOrderThatComesTwiceDoesNotBeginAgain) {
  Ranks group(1);
  group.to_all(HoldCommand{1, 5, 2s});
  group[0].submit(greedy_request(1, prompt_of(1, 10), 3));
  group.run_for(1500ms);
  group.to_all(HoldCommand{1, 5, 2s});
  group.run_for(700ms);
  expect_whole(group[0], 1, prompt_of(1, 10), 3);
  group.to_all(HoldCommand{1, 5, 2s});
  group[0].submit(greedy_request(2, prompt_of(2, 10), 3));
  group.settle();
  expect_whole(group[0], 2, prompt_of(2, 10), 3);
}

TEST(HoldAdmission, HandedOverRequestsCollectOnADecodeServer) {
  Pair pair;
  EXPECT_EQ(pair.decode->rig.engine->submit(HoldCommand{1, 4, 300s}), PushResult::kPushed);
  for (uint64_t id = 0; id < 3; ++id) pair.submit(greedy_request(id, prompt_of(id, 10), 4), 100 + id);
  pair.run_until_idle();
  EXPECT_EQ(pair.decode->rig.engine->snapshot().running, 3);
  EXPECT_EQ(pair.decode->rig.model.forwards, 0);
  pair.decode->rig.cancel(2);  // counts no more
  pair.submit(greedy_request(3, prompt_of(3, 10), 4), 103);
  pair.run_until_idle();
  EXPECT_EQ(pair.decode->rig.model.forwards, 0);
  pair.submit(greedy_request(4, prompt_of(4, 10), 4), 104);
  pair.run_until_idle();
  EXPECT_EQ(pair.decode->rig.model.forwards, 3) << "all of them together";
  for (const uint64_t id : {0, 1, 3, 4}) expect_whole(pair.decode->rig, id, prompt_of(id, 10), 4);
  pair.expect_baseline();
}

}  // namespace
}  // namespace tandem::testing
