// NodeRanks: the ranks of this process, each with its model, cache, KV port, engine and engine thread, built in order
// and taken down in reverse. Owner: the main thread.
#pragma once

#include <functional>
#include <memory>

#include "app/memory_plan.h"
#include "app/resolve.h"
#include "engine/engine.h"
#include "engine/expert_balancer.h"
#include "profile/metrics.h"

namespace tandem::app {

class NodeRanks {
 public:
  struct Parts {  // borrowed; outlive the ranks
    const Clock* clock;
    profile::Metrics* metrics;
    int num_threads;  // of the process, for kernels
  };
  // Loads the model and opens the KV ports. Events of all ranks go to the sink, on engine threads.
  static Result<std::unique_ptr<NodeRanks>> create(const ResolvedConfig& config, const MemoryPlan& plan, Parts parts,
                                                   std::function<void(api::EngineEvent)> sink);
  virtual ~NodeRanks() = default;  // ends what still runs with a 503 and joins

  virtual engine::EngineDoor& door() = 0;
  virtual engine::ExpertBalancer* experts() = 0;  // null: no routed experts
  virtual void start() = 0;                       // the engine threads, and the balancer's
};

}  // namespace tandem::app
