// Two nodes in one process as they run: a thread for node 0's balancer, one for node 1's follower, one whose steps
// switch all ranks, slabs read over UCX, messages carried at once.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "base/queue.h"
#include "engine/expert_balancer.h"
#include "engine/expert_follower.h"
#include "engine/slab_reads.h"
#include "tests/engine/expert_rig.h"

namespace tandem::testing {
namespace {

using engine::ExpertBalancer;
using engine::ExpertFollower;
using engine::ExpertPort;
using engine::RebalanceReply;
using engine::SlabReads;

constexpr int32_t kRanksPerNode = 2;

class Nodes {
 public:
  Nodes() {
    const ExpertPlacement start = experts::trivial_placement(kLayers, kExperts, kTopology.num_slots());
    for (int32_t rank = 0; rank < kTopology.num_ranks; ++rank) {
      slots_.push_back(make_slots(start, rank));
      ports_.push_back(std::make_unique<ExpertPort>(kLayers, kExperts, *slots_.back()));
      kv::TransferOptions options;
      options.listen = true;
      options.epoch = uint64_t(rank) + 1;
      auto transfer = kv::make_ucx_transfer(options, slots_.back()->slab());
      CHECK(transfer.has_value());
      const std::string address = (*transfer)->address();
      addresses_.push_back({"127.0.0.1", uint16_t(std::stoi(address.substr(address.rfind(':') + 1)))});
      transfers_.push_back(std::move(*transfer));
    }
    engine::ExpertBalancerConfig config;
    config.topology = kTopology;
    make_balancer(config, start);
    make_follower(config, start);
    threads_.emplace_back([this](std::stop_token stop) { balancer_->run(stop); });
    threads_.emplace_back([this](std::stop_token stop) { follower_->run(stop); });
    threads_.emplace_back([this](std::stop_token stop) { step(stop); });
  }

  // Blocks until all ranks of both nodes have switched. False: that took a minute.
  bool change_to(const ExpertPlacement& placement) {
    {
      std::lock_guard lock(mutex_);
      next_ = placement;
    }
    const uint64_t epoch = balancer_->view().epoch;
    BoundedQueue<Result<RebalanceReply>> replies(1);
    balancer_->rebalance("", "", [&](Result<RebalanceReply> reply) { replies.push(std::move(reply)); });
    const auto reply = replies.pop(std::chrono::seconds(60));
    if (!reply || !*reply) return false;
    BoundedQueue<bool> nothing(1);
    for (int i = 0; i < 60000 && balancer_->view().epoch == epoch; ++i) nothing.pop(std::chrono::milliseconds(1));
    return balancer_->view().epoch == epoch + 1;
  }
  std::string last_error() const { return balancer_->view().last_error; }
  // Ends all threads first.
  void expect_holds_everywhere(const ExpertPlacement& wanted) {
    threads_.clear();
    for (int32_t rank = 0; rank < kTopology.num_ranks; ++rank) expect_holds(*slots_[size_t(rank)], wanted, rank);
  }

 private:
  SlabReads::Parts slab_parts(int32_t node) {
    SlabReads::Parts parts;
    parts.first_rank = node * kRanksPerNode;
    parts.addresses = addresses_;
    for (int32_t i = 0; i < kRanksPerNode; ++i) {
      parts.transfers.push_back(std::move(transfers_[size_t(parts.first_rank + i)]));
    }
    return parts;
  }
  void make_balancer(const engine::ExpertBalancerConfig& config, const ExpertPlacement& start) {
    engine::BalancerParts parts;
    parts.clock = &clock_;
    parts.metrics = &metrics_;
    parts.placement = start;
    parts.plan = [this](const engine::PlanRequest&) -> Result<ExpertPlacement> {
      std::lock_guard lock(mutex_);
      return next_;
    };
    for (int32_t rank = 0; rank < kRanksPerNode; ++rank) parts.ports.push_back(ports_[size_t(rank)].get());
    parts.reads = std::make_shared<SlabReads>(slab_parts(0));
    parts.nodes.num_nodes = 2;
    parts.nodes.name = [](int32_t node) { return "node " + std::to_string(node); };
    parts.nodes.send = [this](int32_t, const std::string& bytes) {
      return follower_->on_message(bytes) ? PushResult::kPushed : PushResult::kClosed;
    };
    balancer_ = std::make_unique<ExpertBalancer>(config, std::move(parts));
  }
  void make_follower(const engine::ExpertBalancerConfig& config, const ExpertPlacement& start) {
    ExpertFollower::Parts parts;
    parts.clock = &clock_;
    parts.first_rank = kRanksPerNode;
    parts.placement = start;
    for (int32_t rank = kRanksPerNode; rank < kTopology.num_ranks; ++rank) {
      parts.ports.push_back(ports_[size_t(rank)].get());
    }
    parts.reads = std::make_unique<SlabReads>(slab_parts(1));
    parts.send = [this](const std::string& bytes) {
      return balancer_->on_message(1, bytes) ? PushResult::kPushed : PushResult::kClosed;
    };
    follower_ = std::make_unique<ExpertFollower>(config, std::move(parts));
  }
  // Reads what serves, as a forward does, and switches between two steps.
  void step(const std::stop_token& stop) {
    BoundedQueue<bool> nothing(1);
    for (uint64_t number = 0; !stop.stop_requested(); ++number) {
      uint32_t version = UINT32_MAX;
      for (const auto& port : ports_) version = std::min(version, port->staged());
      for (const auto& port : ports_) {
        port->switch_staged(version);
        for (const int32_t place : port->slots().layer(1).place_of_slot) {
          port->counts()[kExperts] += int32_t(port->slots().place(place)[0]) & 1;
        }
        port->step_done(number);
      }
      nothing.pop(std::chrono::milliseconds(1));
    }
  }

  const SystemClock clock_;
  profile::Metrics metrics_;
  std::vector<std::unique_ptr<model::ExpertSlots>> slots_;
  std::vector<std::unique_ptr<ExpertPort>> ports_;
  std::vector<std::unique_ptr<kv::KvTransfer>> transfers_;
  std::vector<api::RankAddress> addresses_;
  std::mutex mutex_;
  ExpertPlacement next_;  // guarded by mutex_
  std::unique_ptr<ExpertBalancer> balancer_;
  std::unique_ptr<ExpertFollower> follower_;
  std::vector<std::jthread> threads_;  // last: use all the others
};

TEST(ExpertNodeThreads, ExpertsMoveBetweenRunningNodesOverUcx) {
  Nodes nodes;
  for (uint32_t seed = 0; seed < 8; ++seed) {
    ASSERT_TRUE(nodes.change_to(random_placement(seed))) << nodes.last_error();
  }
  nodes.expect_holds_everywhere(random_placement(7));
}

}  // namespace
}  // namespace tandem::testing
