// NodeRanks: the ranks of this process, each with its model, cache, KV port, engine and engine thread, built in order
// and taken down in reverse. In a server of several nodes also what stands for the other nodes' ranks here: on node 0
// one engine::RemoteRank each, on the others the engine::RankHost that takes node 0's commands. Owner: the main thread.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "app/flight_files.h"
#include "app/memory_plan.h"
#include "app/resolve.h"
#include "engine/engine.h"
#include "engine/expert_balancer.h"
#include "parallel/node_group.h"
#include "profile/metrics.h"

namespace tandem::app {

class NodeRanks {
 public:
  struct Parts {  // borrowed; outlive the ranks
    const Clock* clock;
    profile::Metrics* metrics;
    int num_threads;                             // of the process, for kernels
    std::shared_ptr<parallel::NodeGroup> nodes;  // null: the only node. Shared: the ranks' ports live in it
    const FlightFiles* flight;
  };
  // Loads the model and opens the KV ports; with several nodes, waits until all have. Events of all ranks go to the
  // sink, on engine threads and the link's; on nodes other than 0 they go to node 0.
  static Result<std::unique_ptr<NodeRanks>> create(const ResolvedConfig& config, const MemoryPlan& plan, Parts parts,
                                                   std::function<void(api::EngineEvent)> sink);
  // Ends what still runs with a 503 and joins; on node 0 so for all nodes.
  virtual ~NodeRanks() = default;

  virtual engine::EngineDoor& door() = 0;         // on node 0 all ranks of the server, on others this node's
  virtual engine::ExpertBalancer* experts() = 0;  // null: no routed experts, or another node than 0
  virtual void start() = 0;                       // the engine threads, and the balancer's

  // Why the server cannot go on: a rank or node is lost. Nothing: it can.
  virtual std::optional<std::string> lost() const = 0;
  // On node 0: another node was asked to end, and the server should. On the others: node 0 says that it ends.
  virtual bool wants_stop() const = 0;
  virtual void ask_to_stop() = 0;  // on nodes other than 0: tells node 0
};

}  // namespace tandem::app
