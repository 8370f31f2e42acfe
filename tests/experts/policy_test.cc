#include "experts/policy.h"

#include <gtest/gtest.h>

#include "experts/repair.h"
#include "tests/experts/plan_fixture.h"

namespace tandem::experts {
namespace {

using std::chrono::milliseconds;

const PlanShape kShape{{2, 8, 5}, 32, 8};

// A placement planned for one window and the traffic of a later one.
struct Situation {
  std::vector<ExpertLoad> windows;
  ExpertPlacement current;

  explicit Situation(double step) {
    windows = drifting_loads(LoadKind::kWideLogNormal, {.num_layers = 4, .num_logical = 32}, 2, step, 3);
    current = must_plan("tandem", kShape, windows[0]);
  }

  RebalanceInput input() const {
    return {.load = windows[1],
            .current = current,
            .topology = kShape.topology,
            .new_pairs = int64_t(1) << 23,
            .since_last = milliseconds(100'000),
            .next_interval = milliseconds(100'000)};
  }
};

TEST(LoadWindow, OlderWindowsFade) {
  LoadWindow window(1, 2, kShareUnit / 2);
  window.add({1, 2, {10, 3}});
  window.add({1, 2, {1, 1}});
  EXPECT_EQ(window.sum().tokens, (std::vector<int64_t>{11, 4}));
  EXPECT_EQ(window.new_pairs(), 15);
  window.begin_window();
  EXPECT_EQ(window.sum().tokens, (std::vector<int64_t>{5, 2}));
  EXPECT_EQ(window.new_pairs(), 0);
  window.add({1, 2, {100, 0}});
  EXPECT_EQ(window.sum().tokens, (std::vector<int64_t>{105, 2}));
  EXPECT_EQ(window.new_pairs(), 100);
}

TEST(LoadWindow, LargeCountsFadeExactly) {
  LoadWindow window(1, 1, kShareUnit / 4);
  window.add({1, 1, {int64_t(1) << 60}});
  window.begin_window();
  EXPECT_EQ(window.sum().tokens[0], int64_t(1) << 58);
}

TEST(Policy, NothingHappensWithFewTokensOrTooEarly) {
  const Situation situation(0.4);
  RebalanceInput quiet = situation.input();
  quiet.new_pairs = 1000;
  EXPECT_EQ(decide(quiet, {}, {}).reason, "too few tokens");
  RebalanceInput early = situation.input();
  early.since_last = milliseconds(59'999);
  const RebalanceDecision decision = decide(early, {}, {});
  EXPECT_EQ(decision.reason, "too early");
  EXPECT_EQ(decision.action, RebalanceAction::kNone);
  EXPECT_EQ(decision.placement, situation.current);
}

TEST(Policy, SharesChangeBeforeWeightsMove) {
  const Situation situation(0.1);
  RebalanceConfig config;
  config.slowdown_while_moving = 1;  // moving is dear
  config.bytes_per_second = 1'000'000;
  config.balance_threshold = 0;
  const RebalanceDecision decision = decide(situation.input(), config, {});
  EXPECT_EQ(decision.action, RebalanceAction::kReshare);
  EXPECT_EQ(decision.placement.logical_of_slot, situation.current.logical_of_slot);
  EXPECT_GT(decision.balance_planned, decision.balance_now);
  EXPECT_EQ(decision.changed_slots, 0);
}

TEST(Policy, WeightsMoveWhenTheGainExceedsTheCost) {
  const Situation situation(0.4);
  RebalanceConfig config;
  config.balance_threshold = 0;
  const RebalanceDecision decision = decide(situation.input(), config, {});
  EXPECT_EQ(decision.action, RebalanceAction::kRepair);
  EXPECT_EQ(decision.reason, "gain exceeds cost");
  EXPECT_GT(decision.gain_seconds, decision.cost_seconds);
  EXPECT_EQ(decision.changed_slots, changed_slots(situation.current, decision.placement));
  EXPECT_GT(decision.balance_planned, decision.balance_reshared);
  EXPECT_TRUE(validate(decision.placement, kShape.topology).has_value());
  // The same gain is not worth it when there is little time to have it.
  RebalanceInput brief = situation.input();
  brief.next_interval = milliseconds(1);
  EXPECT_NE(decide(brief, config, {}).action, RebalanceAction::kRepair);
}

TEST(Policy, WeightsMoveAtAnyCostUnderTheThreshold) {
  const Situation situation(0.4);
  RebalanceConfig config;
  config.slowdown_while_moving = 1;
  config.bytes_per_second = 1000;
  config.balance_threshold = 1;
  const RebalanceDecision decision = decide(situation.input(), config, {});
  EXPECT_EQ(decision.action, RebalanceAction::kRepair);
  EXPECT_EQ(decision.reason, "balance under the threshold");
  EXPECT_LT(decision.gain_seconds, decision.cost_seconds);
}

TEST(Policy, ABalancedPlacementIsLeftAlone) {
  Situation situation(0.1);
  situation.windows[1] = situation.windows[0];
  const RebalanceDecision decision = decide(situation.input(), {}, {});
  EXPECT_EQ(decision.action, RebalanceAction::kNone);
  EXPECT_EQ(decision.reason, "balanced");
  EXPECT_EQ(decision.placement, situation.current);
}

TEST(Policy, TheIntervalDoublesWithEachFailureAndSuccessResetsIt) {
  const RebalanceConfig config;
  RebalanceState state;
  EXPECT_EQ(state.interval(config), milliseconds(60'000));
  state = after_failure(after_failure(state));
  EXPECT_EQ(state.interval(config), milliseconds(240'000));
  EXPECT_EQ(decide(Situation(0.4).input(), config, state).reason, "too early");
  for (int i = 0; i < 100; ++i) state = after_failure(state);
  EXPECT_EQ(state.interval(config), milliseconds(60'000) * 64);
  EXPECT_EQ(after_success(state).interval(config), milliseconds(60'000));
}

TEST(Policy, FaultsOfTheConfigAreNamed) {
  EXPECT_TRUE(RebalanceConfig{}.validate().has_value());
  RebalanceConfig config;
  config.balance_threshold = 1.5;
  EXPECT_EQ(config.validate().error().message, "balance_threshold is 1.5, it must be in [0, 1]");
  config = {};
  config.bytes_per_second = 0;
  EXPECT_EQ(config.validate().error().message, "bytes_per_second must be at least 1");
}

}  // namespace
}  // namespace tandem::experts
