// ExpertFollower: what a node other than 0 does for node 0's ExpertBalancer: answers for the counts and recordings of
// its ranks, and carries plans out with an ExpertMover of its own. Its thread turns tick(); the ranks' engines never
// wait for it. It stages a version only when node 0 says that every node has copied it; whatever goes wrong before is
// told to node 0, and the placement in use serves on.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "api/node_experts.h"
#include "base/queue.h"
#include "engine/expert_balancer.h"
#include "engine/slab_reads.h"

namespace tandem::engine {

class ExpertFollower {
 public:
  struct Parts {
    const Clock* clock = nullptr;
    std::vector<ExpertPort*> ports;  // of this node's ranks, in rank order; outlive the follower
    int32_t first_rank = 0;
    experts::ExpertPlacement placement;  // what all ranks were loaded with
    CopyFn copy;                         // empty: memcpy
    std::unique_ptr<SlabReads> reads;
    std::function<PushResult(const std::string& bytes)> send;  // an encoded message to node 0
    size_t answer_bytes = size_t(4) << 20;                     // of a recording, in one answer
  };
  // config: the same as the balancer's.
  ExpertFollower(const ExpertBalancerConfig& config, Parts parts);
  ~ExpertFollower();

  // Any thread. Errors: what is no message of node 0.
  Status on_message(std::string_view bytes);

  // One round of bounded work. Returns whether there is more to do at once.
  bool tick();
  void run(std::stop_token stop);

  uint32_t version() const;  // switches carried out; its own thread
  const experts::ExpertPlacement& placement() const;

 private:
  void take(api::NodeExpertAsk& ask);
  void take(api::NodeExpertPlan& plan);
  void take(api::NodeExpertStage& stage);
  void take(api::NodeExpertAbort& abort);
  template <class T>
  void take(T&) {}  // on_message() has turned it away
  void collect();
  void begin();
  Status begin_plan(const api::NodeExpertPlan& plan);
  bool advance();
  void report(bool at_once);
  void fail(const std::string& reason);
  void tell(const api::NodeExpertMessage& message);

  const ExpertBalancerConfig config_;
  const Parts parts_;
  BoundedQueue<api::NodeExpertMessage> inbox_;
  // The follower's thread.
  std::unique_ptr<ExpertMover> mover_;
  std::unique_ptr<CopyPace> pace_;
  experts::ExpertLoad counts_;                    // not asked for yet
  ExpertRecording taken_;                         // of a recording, what node 0 has still to ask for
  std::optional<api::NodeExpertPlan> next_plan_;  // begins when the mover is idle
  uint64_t plan_ = 0;                             // in work, or the last
  api::NodeExpertProgress told_;                  // node 0
  TimePoint told_at_{};
};

}  // namespace tandem::engine
