// Live changes of a placement over two nodes of two ranks, all driven by hand: node 0's balancer, node 1's follower,
// the messages between them, and slabs that are read over the in-process transfer. Names refer to the balancing
// contract's lists (W: movement, S: switch, F: failure, C: counting).
#include <gtest/gtest.h>

#include <deque>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "engine/expert_balancer.h"
#include "engine/expert_follower.h"
#include "engine/slab_reads.h"
#include "experts/files.h"
#include "kv/local_fabric.h"
#include "tests/engine/expert_rig.h"

namespace tandem::testing {
namespace {

using engine::BalancerView;
using engine::ExpertBalancer;
using engine::ExpertFollower;
using engine::ExpertPort;
using engine::RebalanceReply;
using engine::SlabReads;

constexpr int32_t kRanksPerNode = 2;

// num_nodes 1: all four ranks under one balancer, to compare with.
class Rig {
 public:
  explicit Rig(engine::ExpertBalancerConfig config = {}, int32_t num_nodes = 2) {
    const ExpertPlacement start = experts::trivial_placement(kLayers, kExperts, kTopology.num_slots());
    config.topology = kTopology;
    for (int32_t rank = 0; rank < kTopology.num_ranks; ++rank) {
      slots.push_back(make_slots(start, rank));
      ports.push_back(std::make_unique<ExpertPort>(kLayers, kExperts, *slots.back()));
    }
    clock.advance(std::chrono::seconds(1));
    engine::BalancerParts parts;
    parts.clock = &clock;
    parts.metrics = &metrics;
    parts.placement = start;
    parts.plan = [this](const engine::PlanRequest& request) -> Result<ExpertPlacement> {
      return next_plan ? next_plan(request) : Result<ExpertPlacement>(request.current);
    };
    const int32_t here = num_nodes == 1 ? kTopology.num_ranks : kRanksPerNode;
    for (int32_t rank = 0; rank < here; ++rank) parts.ports.push_back(ports[size_t(rank)].get());
    if (num_nodes == 2) {
      open_slabs();
      parts.reads = std::make_shared<SlabReads>(slab_parts(0));
      parts.nodes.num_nodes = 2;
      parts.nodes.name = [](int32_t node) { return "node " + std::to_string(node); };
      parts.nodes.send = [this](int32_t, const std::string& bytes) {
        if (!is_cut) to_follower.push_back(bytes);
        return PushResult::kPushed;
      };
      make_follower(config, start);
    }
    balancer = std::make_unique<ExpertBalancer>(config, std::move(parts));
  }

  void open_slabs() {
    for (int32_t rank = 0; rank < kTopology.num_ranks; ++rank) {
      kv::TransferOptions options;
      options.listen = true;
      options.epoch = uint64_t(rank) + 1;
      transfers.push_back(kv::make_local_transfer(fabric, options, slots[size_t(rank)]->slab()));
      addresses.push_back(transfers.back()->address());
    }
  }
  SlabReads::Parts slab_parts(int32_t node) {
    SlabReads::Parts parts;
    parts.first_rank = node * kRanksPerNode;
    for (int32_t i = 0; i < kRanksPerNode; ++i) {
      parts.transfers.push_back(std::move(transfers[size_t(parts.first_rank + i)]));
    }
    for (const std::string& address : addresses) {
      const size_t colon = address.rfind(':');
      parts.addresses.push_back({address.substr(0, colon), uint16_t(std::stoi(address.substr(colon + 1)))});
    }
    return parts;
  }
  void make_follower(const engine::ExpertBalancerConfig& config, const ExpertPlacement& start) {
    ExpertFollower::Parts parts;
    parts.clock = &clock;
    parts.first_rank = kRanksPerNode;
    parts.answer_bytes = 4096;
    parts.placement = start;
    for (int32_t rank = kRanksPerNode; rank < kTopology.num_ranks; ++rank) {
      parts.ports.push_back(ports[size_t(rank)].get());
    }
    parts.reads = std::make_unique<SlabReads>(slab_parts(1));
    parts.send = [this](const std::string& bytes) {
      if (!is_cut) to_balancer.push_back(bytes);
      return PushResult::kPushed;
    };
    follower = std::make_unique<ExpertFollower>(config, std::move(parts));
  }

  // Messages arrive, both sides do a round of work.
  void tick() {
    clock.advance(std::chrono::milliseconds(1));
    for (const std::string& bytes : std::exchange(to_follower, {})) ASSERT_TRUE(follower->on_message(bytes));
    for (const std::string& bytes : std::exchange(to_balancer, {})) ASSERT_TRUE(balancer->on_message(1, bytes));
    balancer->tick();
    if (follower && !is_frozen) follower->tick();
  }
  // A step of the group: the smallest staged version switches on all ranks.
  void step() {
    uint32_t version = UINT32_MAX;
    for (const auto& port : ports) version = std::min(version, port->staged());
    for (const auto& port : ports) {
      port->switch_staged(version);
      port->step_done(steps);
    }
    steps += 1;
  }
  bool is_idle() const { return !balancer->view().in_progress && to_follower.empty() && to_balancer.empty(); }
  void settle() {
    for (int i = 0; i < 200000; ++i) {
      tick();
      step();
      const bool is_level = !follower || balancer->view().version == follower->version();
      if (i > 20 && is_idle() && is_level) return;
    }
    FAIL() << "the rebalance did not end: " << balancer->view().last_error;
  }
  Result<RebalanceReply> ask() {
    std::optional<Result<RebalanceReply>> reply;
    balancer->rebalance("", "", [&](Result<RebalanceReply> r) { reply = std::move(r); });
    for (int i = 0; i < 30000 && !reply; ++i) tick();
    return reply ? *reply : Result<RebalanceReply>(timed_out("the rig waited for nothing"));
  }
  void change_to(const ExpertPlacement& placement) {
    next_plan = [placement](const engine::PlanRequest&) { return placement; };
    const Result<RebalanceReply> reply = ask();
    ASSERT_TRUE(reply) << reply.error().message;
    settle();
  }
  void expect_consistent(const ExpertPlacement& wanted) const {
    EXPECT_EQ(balancer->view().placement.logical_of_slot, wanted.logical_of_slot);
    EXPECT_EQ(follower->placement().logical_of_slot, wanted.logical_of_slot);
    for (int32_t rank = 0; rank < kTopology.num_ranks; ++rank) expect_holds(*slots[size_t(rank)], wanted, rank);
  }
  Result<std::string> dump() {
    std::optional<Result<std::string>> reply;
    balancer->dump_recording([&](Result<std::string> r) { reply = std::move(r); });
    for (int i = 0; i < 30000 && !reply; ++i) tick();
    return reply ? *reply : Result<std::string>(timed_out("the rig waited for nothing"));
  }

  ManualClock clock;
  profile::Metrics metrics;
  std::vector<std::unique_ptr<model::ExpertSlots>> slots;
  std::vector<std::unique_ptr<ExpertPort>> ports;
  std::shared_ptr<kv::LocalFabric> fabric = kv::make_local_fabric();
  std::vector<std::unique_ptr<kv::KvTransfer>> transfers;
  std::vector<std::string> addresses;
  std::deque<std::string> to_follower, to_balancer;
  std::unique_ptr<ExpertBalancer> balancer;
  std::unique_ptr<ExpertFollower> follower;
  std::function<Result<ExpertPlacement>(const engine::PlanRequest&)> next_plan;
  bool is_cut = false, is_frozen = false;
  uint64_t steps = 0;
};

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

TEST(NodeMovement, W1_AfterAnyChangeEverySlotOfBothNodesHoldsItsExpert) {
  Rig rig;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    const ExpertPlacement next = random_placement(seed);
    rig.change_to(next);
    rig.expect_consistent(next);
    if (HasFatalFailure() || HasNonfatalFailure()) return;
  }
  EXPECT_EQ(rig.balancer->view().epoch, 60u);
  EXPECT_EQ(rig.balancer->view().failed, 0u);
  EXPECT_GT(rig.balancer->view().bytes_moved, 0);
}

TEST(NodeMovement, ThePlacementsAndMovesAreThoseOfOneProcess) {
  Rig apart, together({}, 1);
  for (uint32_t seed = 0; seed < 10; ++seed) {
    apart.change_to(random_placement(seed));
    together.change_to(random_placement(seed));
    for (size_t rank = 0; rank < 4; ++rank) {
      for (const int32_t layer : {1, 2}) {
        EXPECT_EQ(apart.slots[rank]->layer(layer).place_of_slot, together.slots[rank]->layer(layer).place_of_slot);
      }
    }
  }
  EXPECT_EQ(apart.balancer->view().moves_done, together.balancer->view().moves_done);
  EXPECT_EQ(apart.balancer->view().bytes_moved, together.balancer->view().bytes_moved);
}

TEST(NodeMovement, AThrottledNodeReadsNoMoreThanItsShare) {
  engine::ExpertBalancerConfig config;
  config.bytes_per_step = 200;  // an expert has some thousand
  Rig rig(config);
  rig.next_plan = [](const engine::PlanRequest&) { return random_placement(3); };
  ASSERT_TRUE(rig.ask());
  for (int i = 0; i < 20; ++i) rig.tick();                 // as many steps at most
  const int64_t moved = rig.balancer->view().bytes_moved;  // node 0's; node 1 has not reported yet
  EXPECT_GT(moved, 0);
  EXPECT_LE(moved, 30 * 200 / 2);
  rig.settle();
  rig.expect_consistent(random_placement(3));
}

TEST(NodeSwitch, S1_NoNodeStagesBeforeAllHaveCopied) {
  engine::ExpertBalancerConfig config;
  config.layers_per_version = 1;
  Rig rig(config);
  rig.next_plan = [](const engine::PlanRequest&) { return random_placement(4); };
  ASSERT_TRUE(rig.ask());
  rig.is_frozen = true;  // node 1 hears nothing of it yet
  for (int i = 0; i < 500; ++i) rig.tick();
  for (const auto& port : rig.ports) EXPECT_EQ(port->staged(), 0u);
  rig.is_frozen = false;
  rig.settle();
  rig.expect_consistent(random_placement(4));
}

TEST(NodeFailure, ACorruptedByteIsRefusedByItsDigestAndTheOldPlacementServes) {
  Rig rig;
  const ExpertPlacement start = rig.balancer->view().placement;
  // Every expert of node 1 gets a flipped bit on its way: what node 0 reads is not what was loaded.
  const auto flip = [&] {
    for (const size_t rank : {2, 3}) {
      for (int32_t place = 0; place < 6; ++place) rig.slots[rank]->place(place)[5] ^= std::byte(4);
    }
  };
  flip();
  rig.next_plan = [](const engine::PlanRequest&) { return random_placement(6); };
  ASSERT_TRUE(rig.ask());
  rig.settle();
  flip();
  const BalancerView view = rig.balancer->view();
  EXPECT_EQ(view.failed, 1u);
  EXPECT_EQ(view.epoch, 0u);
  EXPECT_NE(view.last_error.find("digest"), std::string::npos) << view.last_error;
  rig.expect_consistent(start);
  rig.change_to(random_placement(6));  // the next plan succeeds
  rig.expect_consistent(random_placement(6));
}

// F2, F5: a read that fails at every point of the plan, on either side.
TEST(NodeFailure, F2_AFailedReadLeavesBothNodesWithTheSameConsistentPlacement) {
  engine::ExpertBalancerConfig config;
  config.layers_per_version = 1;
  int32_t failures = 0;
  for (const size_t reader : {0, 3}) {
    for (int32_t after = 0; after < 40; after += 3) {
      Rig rig(config);
      rig.next_plan = [](const engine::PlanRequest&) { return random_placement(11); };
      ASSERT_TRUE(rig.ask());
      for (int32_t i = 0; i < after; ++i) {
        rig.tick();
        rig.step();
      }
      rig.fabric->fail_reads(rig.addresses[reader], 1);
      rig.settle();
      const BalancerView view = rig.balancer->view();
      rig.expect_consistent(view.placement);
      if (view.failed > 0) {
        failures += 1;
        EXPECT_NE(view.last_error.find("could not be read"), std::string::npos) << view.last_error;
      }
      rig.fabric->fail_reads(rig.addresses[reader], 0);
      rig.change_to(random_placement(11));
      rig.expect_consistent(random_placement(11));
      if (HasFatalFailure() || HasNonfatalFailure()) return;
    }
  }
  EXPECT_GT(failures, 4);
}

TEST(NodeFailure, AnOwnerThatIsLostInTheMiddleOfAMoveIsAClearErrorAndNoHang) {
  Rig rig;
  const ExpertPlacement start = rig.balancer->view().placement;
  rig.fabric->hold_reads(rig.addresses[0], true);
  rig.fabric->hold_reads(rig.addresses[1], true);
  rig.next_plan = [](const engine::PlanRequest&) { return random_placement(6); };
  ASSERT_TRUE(rig.ask());
  for (int i = 0; i < 50; ++i) rig.tick();
  EXPECT_TRUE(rig.balancer->view().in_progress);
  rig.is_cut = rig.is_frozen = true;
  for (const size_t rank : {2, 3}) rig.fabric->kill(rig.addresses[rank]);
  for (int i = 0; i < 50; ++i) rig.tick();
  const BalancerView view = rig.balancer->view();
  EXPECT_FALSE(view.in_progress);
  EXPECT_EQ(view.failed, 1u);
  EXPECT_NE(view.last_error.find("could not be read"), std::string::npos) << view.last_error;
  for (int32_t rank = 0; rank < 2; ++rank) expect_holds(*rig.slots[size_t(rank)], start, rank);
  // What is asked from now on has its answer when the loss is known.
  std::string heard;
  rig.balancer->dump_recording([&](Result<std::string> r) { heard = r ? *r : r.error().message; });
  rig.tick();
  EXPECT_EQ(heard, "");
  rig.balancer->on_lost("node 1 was lost: reset");
  rig.tick();
  EXPECT_EQ(heard, "node 1 was lost: reset");
}

TEST(NodeFailure, ANodeThatCopiesNothingIsNamedAfterTheDeadlineAndThePlanIsGivenUp) {
  engine::ExpertBalancerConfig config;
  config.progress_deadline = std::chrono::seconds(2);
  Rig rig(config);
  const ExpertPlacement start = rig.balancer->view().placement;
  rig.next_plan = [](const engine::PlanRequest&) { return random_placement(7); };
  ASSERT_TRUE(rig.ask());
  rig.is_frozen = true;
  for (int i = 0; i < 2500; ++i) rig.tick();
  rig.is_frozen = false;
  rig.settle();
  EXPECT_EQ(rig.balancer->view().failed, 1u);
  EXPECT_EQ(rig.balancer->view().last_error, "node 1 copied nothing of version 1 within 2.0 s");
  rig.expect_consistent(start);
  rig.change_to(random_placement(7));
  rig.expect_consistent(random_placement(7));
}

TEST(NodeFailure, APlanForAnotherPlacementIsRefusedByTheOtherNode) {
  Rig rig;
  rig.change_to(random_placement(1));
  rig.next_plan = [](const engine::PlanRequest&) { return random_placement(2); };
  ASSERT_TRUE(rig.ask());
  Result<api::NodeExpertMessage> message = api::decode_expert_message(rig.to_follower.back());
  ASSERT_TRUE(message);
  auto* plan = std::get_if<api::NodeExpertPlan>(&*message);
  ASSERT_NE(plan, nullptr);
  plan->base_digest ^= 1;
  rig.to_follower.back() = api::encode_expert_message(*message);
  rig.settle();
  EXPECT_NE(rig.balancer->view().last_error.find("node 1: the plan changes version"), std::string::npos)
      << rig.balancer->view().last_error;
  rig.expect_consistent(random_placement(1));
}

TEST(NodeFailure, ASilentNodeEndsEveryQuestionWithItsName) {
  Rig rig;
  rig.is_cut = true;
  EXPECT_EQ(rig.ask().error().message, "node 1 did not answer about experts within 10 s");
  EXPECT_EQ(rig.dump().error().code, ErrorCode::kTimeout);
  rig.is_cut = false;
  rig.change_to(random_placement(5));
  rig.expect_consistent(random_placement(5));
}

TEST(NodeFailure, MessagesOfTheWrongKindOrShapeAreErrors) {
  Rig rig;
  EXPECT_FALSE(rig.follower->on_message("x"));
  EXPECT_FALSE(rig.follower->on_message(api::encode_expert_message(api::NodeExpertFailed{1, "why"})));
  EXPECT_FALSE(rig.balancer->on_message(1, api::encode_expert_message(api::NodeExpertStage{1, 1})));
  EXPECT_FALSE(rig.balancer->on_message(2, api::encode_expert_message(api::NodeExpertFailed{1, "why"})));
  api::NodeExpertAnswer answer;
  answer.tokens = {1, 2, 3};
  EXPECT_TRUE(
      rig.balancer->on_message(1, api::encode_expert_message(answer)));  // its shape is seen later, and harmless
  api::NodeExpertPlan plan;
  plan.plan = 9;
  EXPECT_TRUE(rig.follower->on_message(api::encode_expert_message(plan)));
  EXPECT_TRUE(rig.follower->on_message(api::encode_expert_message(api::NodeExpertStage{9, 1})));
  rig.settle();
  rig.change_to(random_placement(8));
  rig.expect_consistent(random_placement(8));
}

TEST(NodeFailure, AbsurdAmountsAndCountsAreRefusedAndSizeNothing) {
  Rig rig;
  for (const int64_t amount : {INT64_MAX, int64_t(1) << 40, int64_t(0), INT64_MIN}) {
    using What = api::NodeExpertAsk::What;
    ASSERT_TRUE(
        rig.follower->on_message(api::encode_expert_message(api::NodeExpertAsk{9, What::kStartRecording, amount})));
    rig.follower->tick();
    ASSERT_FALSE(rig.to_balancer.empty());
    const auto answer = api::decode_expert_message(rig.to_balancer.back());
    EXPECT_NE(std::get<api::NodeExpertAnswer>(*answer).error.find("a recording of"), std::string::npos);
  }
  rig.to_balancer.clear();
  // The counts of a hostile node would send the plan anywhere, or overflow its sums.
  for (const int64_t count : {int64_t(-1), INT64_MAX, INT64_MIN}) {
    api::NodeExpertAnswer answer;
    answer.ask = 1;
    answer.tokens.assign(size_t(kLayers * kExperts), count);
    ASSERT_TRUE(rig.balancer->on_message(1, api::encode_expert_message(answer)));
    rig.is_cut = true;
    EXPECT_FALSE(rig.ask());
    rig.is_cut = false;
  }
  rig.change_to(random_placement(5));
  rig.expect_consistent(random_placement(5));
}

TEST(NodeCounting, C1_APlanIsMadeFromTheCountsOfAllNodes) {
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
    for (size_t rank = 0; rank < rig.ports.size(); ++rank) {
      rig.ports[rank]->counts()[1 * kExperts + 5] += int32_t(rank) + 1;
    }
    rig.step();
  }
  for (int i = 0; i < 10 && !seen; ++i) rig.tick();
  ASSERT_TRUE(seen.has_value());
  EXPECT_EQ(seen->layer(1)[5], 10 * (1 + 2 + 3 + 4));
}

TEST(NodeCounting, C3_ADumpIsBitForBitThatOfOneProcess) {
  std::vector<std::string> files;
  for (const int32_t num_nodes : {1, 2}) {
    engine::ExpertBalancerConfig config;
    config.dump_directory = ::testing::TempDir() + "tandem_node_dump_" + std::to_string(num_nodes);
    config.recorder_steps = 300;  // several parts on the way
    std::filesystem::remove_all(config.dump_directory);
    Rig rig(config, num_nodes);
    bool started = false;
    rig.balancer->start_recording([&](const Status& done) { started = done.has_value(); });
    for (int i = 0; i < 10; ++i) rig.tick();
    ASSERT_TRUE(started);
    std::mt19937 random(5);
    for (int32_t step = 0; step < 600; ++step) {
      for (const auto& port : rig.ports) port->counts()[kExperts + int32_t(random() % (2 * kExperts))] += 3;
      rig.step();
    }
    const Result<std::string> path = rig.dump();
    ASSERT_TRUE(path) << path.error().message;
    files.push_back(contents(*path));
  }
  EXPECT_GT(files[0].size(), 300u * 96);
  EXPECT_TRUE(files[0] == files[1]);
}

}  // namespace
}  // namespace tandem::testing
