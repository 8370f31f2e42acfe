// RankLink: this node's end of what the nodes of a server say to each other once they have met: that models are loaded
// and where KV ports are, then commands, events and figures. Owner: the main thread; messages arrive on the link's.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/node.h"
#include "base/queue.h"
#include "engine/remote.h"
#include "parallel/node_group.h"

namespace tandem::app {

class RankLink {
 public:
  // sink: node 0's, for events of the other nodes' ranks.
  RankLink(std::shared_ptr<parallel::NodeGroup> nodes, const Clock& clock, std::function<void(api::EngineEvent)> sink);

  void start();  // the link's thread
  // This node's model and ports are there: waits until those of all nodes are, and gives all ranks' ports in order.
  // Errors: kTimeout naming who is missing, kInvalidInput where weights differ, kPeerLost.
  Result<api::NodeGo> all_loaded(api::NodeLoaded own, Duration patience);
  // This node's engines take commands from now on; node 0 waits until those of all nodes do.
  Status open(std::vector<engine::EngineDoor*> engines, Duration patience);
  // On node 0: the ranks of the other nodes, in order.
  std::vector<engine::EngineDoor*> remote_ranks();
  // On other nodes: where the events of a rank go.
  std::function<void(api::EngineEvent)> sink(uint32_t rank) const;

  // What other nodes say of experts, and that the group has ended; on the link's thread. Before open().
  void on_experts(std::function<Status(int32_t node, const std::string& bytes)> take,
                  std::function<void(const std::string& reason)> lost);
  PushResult send_experts(int32_t node, const std::string& bytes);
  std::string node_name(int32_t node) const { return nodes_->node_name(node); }

  std::optional<std::string> lost() const;
  bool wants_stop() const { return wants_stop_.load(); }
  void ask_to_stop();
  void stop_others();  // on node 0; elsewhere nothing
  // After this nothing arrives any more; the engines may go.
  void leave();

 private:
  struct Arrival {
    int32_t node;
    api::NodeMessage message;
  };
  bool is_first() const { return nodes_->node_rank() == 0; }
  int32_t ranks_per_node() const { return nodes_->num_ranks() / nodes_->num_nodes(); }
  Result<Arrival> next(TimePoint deadline, const std::function<std::string()>& missing);
  Result<api::NodeGo> gather(api::NodeLoaded own, TimePoint deadline);
  void on_message(int32_t node, const std::string& bytes);
  Status take(int32_t node, api::NodeMessage message);
  Status take_from_rank_node(int32_t node, api::NodeMessage& message);
  void on_tick();
  void fail_remotes(const std::string& reason);
  engine::SendNodeMessage send_to(int32_t node) const;
  // kFull ends the group: an event that is not told would leave a client waiting.
  engine::SendNodeMessage send_to_first() const;

  const std::shared_ptr<parallel::NodeGroup> nodes_;  // shared with the ranks, whose ports live in it
  const Clock& clock_;
  std::vector<std::unique_ptr<engine::RemoteRank>> remotes_;  // node 0; from the first rank of node 1
  std::vector<std::atomic<bool>> has_figures_;                // node 0; by node: its engines take commands
  std::unique_ptr<engine::RankHost> host_;                    // other nodes
  std::atomic<engine::RankHost*> open_host_{nullptr};         // set once host_ is complete
  std::function<Status(int32_t, const std::string&)> take_experts_;
  std::function<void(const std::string&)> experts_lost_;
  std::atomic<bool> has_experts_{false};  // set once these two are there
  BoundedQueue<Arrival> arrivals_{4096};  // what all_loaded() waits for
  std::atomic<bool> wants_stop_{false};
};

}  // namespace tandem::app
