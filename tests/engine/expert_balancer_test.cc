// Live changes of a placement with ranks driven by hand: bytes, tables and books after any change, and every way in
// which one may fail. Names refer to the balancing contract's lists (W: movement, S: switch, F: failure, C: counting).
#include "engine/expert_balancer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <random>
#include <set>

#include "device/digest.h"
#include "experts/files.h"
#include "tests/engine/expert_rig.h"

namespace tandem::testing {
namespace {

using engine::BalancerView;
using engine::ExpertBalancer;
using engine::ExpertPort;
using engine::RebalanceReply;
using experts::ExpertPlacement;

// Copies as a GPU makes them: the digest is asked for, and known some looks later.
class LateCopies final : public engine::PlaceCopies {
 public:
  Status copy(int32_t, std::span<const std::byte> from, std::span<std::byte> to) override {
    std::memcpy(to.data(), from.data(), from.size());
    if (spoils_next) to[5] ^= std::byte(1);
    spoils_next = false;
    return Ok{};
  }
  void begin_digest(int32_t, std::span<const std::byte> place) override {
    digest_ = device::digest(place);
    looks_left_ = looks_needed;
    digests_begun += 1;
  }
  std::optional<uint64_t> take_digest(int32_t) override {
    if (looks_left_-- > 0) return std::nullopt;
    return digest_;
  }

  int64_t looks_needed = 3, digests_begun = 0;
  bool spoils_next = false;

 private:
  uint64_t digest_ = 0;
  int64_t looks_left_ = 0;
};

class Rig {
 public:
  explicit Rig(engine::ExpertBalancerConfig config = {}, std::shared_ptr<engine::PlaceCopies> copies_by = nullptr) {
    const ExpertPlacement start = experts::trivial_placement(kLayers, kExperts, kTopology.num_slots());
    config.topology = kTopology;
    engine::BalancerParts parts;
    for (int32_t rank = 0; rank < kTopology.num_ranks; ++rank) {
      slots.push_back(make_slots(start, rank));
      ports.push_back(std::make_unique<ExpertPort>(kLayers, kExperts, *slots.back()));
      parts.ports.push_back(ports.back().get());
    }
    clock.advance(std::chrono::seconds(1));
    parts.clock = &clock;
    parts.metrics = &metrics;
    parts.placement = start;
    parts.plan = [this](const engine::PlanRequest& request) -> Result<ExpertPlacement> {
      return next_plan ? next_plan(request) : Result<ExpertPlacement>(request.current);
    };
    parts.copy = [this](std::span<const std::byte> from, std::span<std::byte> to) -> Status {
      copies += 1;
      if (copies == fail_at_copy) return peer_lost("the link went down");
      std::memcpy(to.data(), from.data(), from.size());
      if (copies == corrupt_at_copy) to[3] ^= std::byte(1);
      return Ok{};
    };
    parts.copies = std::move(copies_by);
    balancer = std::make_unique<ExpertBalancer>(config, std::move(parts));
  }

  // A step of the group: the smallest staged version switches on all ranks that take part.
  void step() {
    uint32_t version = UINT32_MAX;
    for (const auto& port : ports) version = std::min(version, port->staged());
    for (size_t rank = 0; rank < ports.size(); ++rank) {
      if (int32_t(rank) == late_rank) continue;
      ports[rank]->switch_staged(version);
      ports[rank]->step_done(steps);
    }
    steps += 1;
  }
  // Ticks and steps until nothing is under way.
  void settle() {
    for (int i = 0; i < 10000; ++i) {
      clock.advance(std::chrono::milliseconds(1));
      balancer->tick();
      step();
      if (!balancer->view().in_progress && i > 0) return;
    }
    FAIL() << "the rebalance did not end";
  }
  Result<RebalanceReply> ask() {
    std::optional<Result<RebalanceReply>> reply;
    balancer->rebalance("", "", [&](Result<RebalanceReply> r) { reply = std::move(r); });
    balancer->tick();
    EXPECT_TRUE(reply.has_value());
    return *reply;
  }
  void change_to(const ExpertPlacement& placement) {
    next_plan = [placement](const engine::PlanRequest&) { return placement; };
    const Result<RebalanceReply> reply = ask();
    ASSERT_TRUE(reply) << reply.error().message;
    settle();
  }

  // W1, M1: each slot's bytes are its expert's, the kernels' table points there, and no place is used twice.
  void expect_consistent(const ExpertPlacement& wanted) const {
    EXPECT_EQ(balancer->view().placement.logical_of_slot, wanted.logical_of_slot);
    for (int32_t rank = 0; rank < kTopology.num_ranks; ++rank) expect_holds(*slots[size_t(rank)], wanted, rank);
  }

  ManualClock clock;
  profile::Metrics metrics;
  std::vector<std::unique_ptr<model::ExpertSlots>> slots;
  std::vector<std::unique_ptr<ExpertPort>> ports;
  std::unique_ptr<ExpertBalancer> balancer;
  std::function<Result<ExpertPlacement>(const engine::PlanRequest&)> next_plan;
  int64_t copies = 0, fail_at_copy = -1, corrupt_at_copy = -1;
  int32_t late_rank = -1;
  uint64_t steps = 0;
};

TEST(Movement, W1_AfterAnyChangeEverySlotHoldsItsExpert) {
  Rig rig;
  for (uint32_t seed = 0; seed < 200; ++seed) {
    const ExpertPlacement next = random_placement(seed);
    rig.change_to(next);
    rig.expect_consistent(next);
    if (HasFatalFailure() || HasNonfatalFailure()) return;
  }
  EXPECT_EQ(rig.balancer->view().epoch, 200u);
  EXPECT_EQ(rig.balancer->view().failed, 0u);
}

TEST(Movement, W2_CyclesAndSwapsWithinARankMoveNoByteTwice) {
  Rig rig;
  ExpertPlacement cycle = experts::trivial_placement(kLayers, kExperts, kTopology.num_slots());
  const auto row = cycle.logical_of_slot.begin() + kTopology.num_slots();
  std::rotate(row, row + 1, row + 3);  // within rank 0: renamed, nothing is copied
  rig.change_to(cycle);
  rig.expect_consistent(cycle);
  EXPECT_EQ(rig.balancer->view().moves_done, 0);
  std::rotate(row, row + 3, row + 12);  // the ranks exchange everything in a ring
  rig.change_to(cycle);
  rig.expect_consistent(cycle);
}

TEST(Movement, TheSamePlacementAgainIsANoOp) {
  Rig rig;
  const ExpertPlacement same = experts::trivial_placement(kLayers, kExperts, kTopology.num_slots());
  rig.change_to(same);
  rig.expect_consistent(same);
  EXPECT_EQ(rig.balancer->view().version, 0u);
  EXPECT_EQ(rig.balancer->view().bytes_moved, 0);
}

TEST(Movement, BytesPerStepAreBounded) {
  engine::ExpertBalancerConfig config;
  config.bytes_per_step = 1000;
  Rig rig(config);
  const ExpertPlacement next = random_placement(3);
  rig.next_plan = [&](const engine::PlanRequest&) { return next; };
  ASSERT_TRUE(rig.ask());
  int64_t before = rig.balancer->view().bytes_moved;
  EXPECT_LE(before, 2000);
  for (int i = 0; i < 400 && rig.balancer->view().in_progress; ++i) {
    rig.step();
    rig.balancer->tick();
    const int64_t now = rig.balancer->view().bytes_moved;
    ASSERT_LE(now - before, 2000);  // what was left over and the step's own
    before = now;
  }
  rig.settle();
  rig.expect_consistent(next);
}

TEST(Movement, DigestsThatComeLaterAreAwaitedAndAskedForOnce) {
  const auto copies = std::make_shared<LateCopies>();
  Rig rig({}, copies);
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const ExpertPlacement next = random_placement(seed);
    rig.change_to(next);
    rig.expect_consistent(next);
  }
  EXPECT_EQ(rig.balancer->view().failed, 0u);
  EXPECT_EQ(copies->digests_begun, rig.balancer->view().moves_done);
}

TEST(Failure, ADigestThatNeverComesOrDiffersEndsThePlanAndTheNextOneSucceeds) {
  const auto copies = std::make_shared<LateCopies>();
  engine::ExpertBalancerConfig config;
  config.progress_deadline = std::chrono::seconds(2);
  Rig rig(config, copies);
  const ExpertPlacement start = rig.balancer->view().placement;
  copies->looks_needed = INT64_MAX;
  rig.change_to(random_placement(1));
  EXPECT_EQ(rig.balancer->view().last_error, "no expert was copied within 2.0 s");
  rig.expect_consistent(start);
  copies->looks_needed = 3;
  copies->spoils_next = true;
  rig.change_to(random_placement(2));
  EXPECT_NE(rig.balancer->view().last_error.find("its source"), std::string::npos);
  EXPECT_EQ(rig.balancer->view().failed, 2u);
  rig.expect_consistent(start);
  rig.change_to(random_placement(3));
  rig.expect_consistent(random_placement(3));
}

TEST(Switch, S1_NothingSwitchesBeforeEveryRankHasItStaged) {
  engine::ExpertBalancerConfig config;
  config.layers_per_version = 1;
  Rig rig(config);
  const ExpertPlacement next = random_placement(4), start = rig.balancer->view().placement;
  rig.next_plan = [&](const engine::PlanRequest&) { return next; };
  ASSERT_TRUE(rig.ask());
  while (rig.ports[0]->staged() == 0) rig.balancer->tick();
  for (const auto& slots : rig.slots) {
    EXPECT_EQ(slots->layer(1).logical_of_slot, std::vector<int32_t>(start.layer(1).begin(), start.layer(1).end()));
  }
  rig.settle();
  rig.expect_consistent(next);
}

TEST(Failure, F1_APlannerThatFailsOrPlansNonsenseChangesNothing) {
  Rig rig;
  const ExpertPlacement start = rig.balancer->view().placement;
  rig.next_plan = [](const engine::PlanRequest&) -> Result<ExpertPlacement> { return timed_out("too slow"); };
  EXPECT_EQ(rig.ask().error().message, "too slow");
  ExpertPlacement bad = start;
  bad.logical_of_slot[size_t(kTopology.num_slots())] = 1;  // expert 0 loses one slot of two: still valid
  bad.logical_of_slot[size_t(kTopology.num_slots()) + 8] = 1;
  rig.next_plan = [&](const engine::PlanRequest&) { return bad; };
  EXPECT_EQ(rig.ask().error().message, "layer 1: expert 0 has no slot");
  rig.settle();
  rig.expect_consistent(start);
  EXPECT_EQ(rig.copies, 0);
  rig.change_to(random_placement(9));
  rig.expect_consistent(random_placement(9));
}

// F2, F5: a copy that fails, and one that arrives changed, at every point of the plan.
TEST(Failure, F2_AFailedCopyLeavesAConsistentPlacementWhereverItFails) {
  engine::ExpertBalancerConfig config;
  config.layers_per_version = 1;
  for (const bool corrupts : {false, true}) {
    for (int64_t at = 1;; ++at) {
      Rig rig(config);
      (corrupts ? rig.corrupt_at_copy : rig.fail_at_copy) = at;
      rig.next_plan = [](const engine::PlanRequest&) { return random_placement(11); };
      ASSERT_TRUE(rig.ask());
      rig.settle();
      const BalancerView view = rig.balancer->view();
      rig.expect_consistent(view.placement);
      if (rig.copies < at) {
        EXPECT_EQ(view.failed, 0u);
        EXPECT_EQ(view.epoch, 1u);
        break;
      }
      EXPECT_EQ(view.failed, 1u);
      EXPECT_EQ(view.epoch, 0u);
      EXPECT_NE(view.last_error.find(corrupts ? "digest" : "link went down"), std::string::npos) << view.last_error;
      rig.change_to(random_placement(11));  // the next plan succeeds
      rig.expect_consistent(random_placement(11));
    }
  }
}

TEST(Failure, F3_ALateRankHoldsNobodyUp) {
  engine::ExpertBalancerConfig config;
  config.progress_deadline = std::chrono::seconds(5);
  Rig rig(config);
  rig.late_rank = 2;
  rig.next_plan = [](const engine::PlanRequest&) { return random_placement(12); };
  ASSERT_TRUE(rig.ask());
  for (int i = 0; i < 6000; ++i) {  // the others step on
    rig.clock.advance(std::chrono::milliseconds(1));
    rig.balancer->tick();
    rig.step();
  }
  EXPECT_TRUE(rig.balancer->view().in_progress);
  // F9: the stall is an error with the rank's name, not silence.
  EXPECT_EQ(rig.balancer->view().last_error, "rank(s) 2 did not switch to version 1 within 5.0 s");
  EXPECT_GE(rig.balancer->view().failed, 1u);
  // F7: a second plan does not overlap.
  EXPECT_EQ(rig.ask().error().message, "a rebalance is under way");
  rig.late_rank = -1;
  rig.settle();
  rig.expect_consistent(random_placement(12));
}

TEST(Failure, WithoutSpareSlotsAPlanIsRefused) {
  Rig rig;
  auto slots =
      std::make_unique<model::ExpertSlots>(model::ExpertSlots::Shape{{1, 2}, kLayers, 12, 0}, make_expert(0, 0));
  ExpertPort port(kLayers, kExperts, *slots);
  engine::BalancerParts parts;
  engine::ExpertBalancerConfig config;
  config.topology = {1, 1, 12};
  parts.clock = &rig.clock;
  parts.metrics = &rig.metrics;
  parts.ports = {&port};
  parts.placement = experts::trivial_placement(kLayers, kExperts, 12);
  ExpertBalancer balancer(config, std::move(parts));
  std::string message;
  balancer.rebalance("", "", [&](Result<RebalanceReply> reply) { message = reply.error().message; });
  balancer.tick();
  EXPECT_EQ(message, "no spare slots were reserved at start: --enable-eplb or --eplb-spare-slots N reserves them");
}

TEST(Counting, C1_APlanIsMadeFromTheCountsOfAllRanks) {
  engine::ExpertBalancerConfig config;
  config.is_periodic = true;
  config.steps_between = 10;
  Rig rig(config);
  std::optional<experts::ExpertLoad> seen;
  rig.next_plan = [&](const engine::PlanRequest& request) {
    seen = request.load;
    return request.current;
  };
  for (int32_t step = 0; step < 10; ++step) {
    EXPECT_FALSE(seen.has_value());
    for (size_t rank = 0; rank < rig.ports.size(); ++rank) {
      rig.ports[rank]->counts()[1 * kExperts + 5] += int32_t(rank) + 1;
    }
    rig.step();
    rig.balancer->tick();
  }
  ASSERT_TRUE(seen.has_value());
  EXPECT_EQ(seen->layer(1)[5], 10 * (1 + 2 + 3 + 4));
  EXPECT_EQ(std::count(seen->tokens.begin(), seen->tokens.end(), 0), kLayers * kExperts - 1);
}

// C3: start clears, stop keeps, dump writes, clears and goes on; the file reads back.
TEST(Counting, C3_ARecordingIsDumpedByStepAndReadBack) {
  engine::ExpertBalancerConfig config;
  config.dump_directory = ::testing::TempDir() + "tandem_expert_dump";
  config.recorder_steps = 3;
  std::filesystem::remove_all(config.dump_directory);
  Rig rig(config);
  const auto count_step = [&](int32_t amount) {
    for (const auto& port : rig.ports) port->counts()[2 * kExperts + 1] += amount;
    rig.step();
  };
  const auto dump = [&] {
    std::string path;
    rig.balancer->dump_recording([&](Result<std::string> result) { path = result ? *result : result.error().message; });
    rig.balancer->tick();
    const std::vector<std::string> paths{path};
    auto file = experts::read_load(paths, {kLayers, kExperts, 0}, experts::StepDetail::kKeepSteps);
    EXPECT_TRUE(file) << file.error().message;
    std::vector<int64_t> counts;
    for (const experts::ExpertLoad& load : file->steps) counts.push_back(load.layer(2)[1]);
    return counts;
  };
  count_step(100);  // before the start
  rig.balancer->start_recording([](Status) {});
  rig.balancer->tick();
  for (int32_t amount : {1, 2, 3, 4}) count_step(amount);
  rig.clock.advance(std::chrono::seconds(1));
  EXPECT_EQ(dump(), (std::vector<int64_t>{8, 12, 16}));  // the last three steps, all four ranks
  count_step(5);
  rig.balancer->stop_recording([](Status) {});
  rig.balancer->tick();
  count_step(6);
  rig.clock.advance(std::chrono::seconds(1));
  EXPECT_EQ(dump(), (std::vector<int64_t>{20}));
}

}  // namespace
}  // namespace tandem::testing
