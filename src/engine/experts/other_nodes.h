// OtherNodes: the nodes beside node 0, as its balancer sees them: asked for counts and recordings, given plans, and
// heard about how far they are. Whatever a node owes has a deadline, and the error names the node.
// Owner: the balancer's thread, but on_message() and on_lost().
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "api/node_experts.h"
#include "base/queue.h"
#include "engine/expert_balancer.h"

namespace tandem::engine {

class OtherNodes {
 public:
  using Answers = std::vector<api::NodeExpertAnswer>;  // by node, from node 1
  using OnAnswers = std::function<void(Result<Answers>)>;

  // cells: of one step's counts. on_counts: every node's counts as they come, also those that come late.
  OtherNodes(NodeLinks links, size_t cells, std::function<void(const std::vector<int64_t>&)> on_counts);

  // Any thread. Only what has the shape of a message of a node other than 0 is taken; the rest is an error.
  Status on_message(int32_t node, std::string_view bytes);
  void on_lost(const std::string& reason);

  // done: when all have answered, or one cannot, or the deadline has passed.
  void ask(api::NodeExpertAsk::What what, int64_t amount, TimePoint now, OnAnswers done);
  // Takes out the recordings of all nodes, part by part.
  void take_recordings(TimePoint now, std::function<void(Result<std::vector<ExpertRecording>>)> done);
  // Takes what has come; ends what is late. Returns whether anything happened.
  bool poll(TimePoint now);

  void begin_plan(const api::NodeExpertPlan& plan, TimePoint now);
  void stage(uint32_t version);
  void abort(const std::string& reason);
  // Whether all nodes have copied this version of the plan, with this placement after it. Errors: why the plan cannot
  // go on: a node that failed, that has another placement, or that makes no progress for `patience`.
  Result<bool> has_copied(uint32_t version, uint64_t digest, TimePoint now, Duration patience) const;
  // Of all these nodes since their start.
  int64_t moves_done() const;
  int64_t bytes_moved() const;

 private:
  struct Arrival {
    int32_t node = 0;
    api::NodeExpertMessage message;
  };
  struct Ask {
    std::vector<std::optional<api::NodeExpertAnswer>> answers;
    TimePoint deadline{};
    OnAnswers done;
  };
  struct Node {
    api::NodeExpertProgress progress;  // the last
    TimePoint progress_at{};
    std::string failed;  // of the plan in work
  };
  // A recording on its way from all nodes.
  struct Taking;

  void take_part(const std::shared_ptr<Taking>& taking, api::NodeExpertAsk::What what, TimePoint now);
  void send_all(const api::NodeExpertMessage& message);
  void take(int32_t node, api::NodeExpertAnswer& answer);
  void take(int32_t node, api::NodeExpertProgress& progress);
  void take(int32_t node, api::NodeExpertFailed& failed);
  template <class T>
  void take(int32_t, T&) {}  // on_message() has turned it away
  Status check(const api::NodeExpertAnswer& answer) const;
  void end(uint64_t ask, Result<Answers> result);
  std::string missing(const Ask& ask) const;

  const NodeLinks links_;
  const size_t cells_;
  const std::function<void(const std::vector<int64_t>&)> on_counts_;
  BoundedQueue<Arrival> arrivals_;
  std::map<uint64_t, Ask> asks_;
  uint64_t next_ask_ = 1, plan_ = 0;
  std::vector<Node> nodes_;  // from node 1
  TimePoint now_{};          // of the last poll
  mutable std::mutex mutex_;
  std::string lost_;  // why; empty: all are there. Guarded by mutex_.
};

}  // namespace tandem::engine
