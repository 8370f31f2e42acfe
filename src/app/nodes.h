// The nodes of one server: what they must have in common, and how they meet at start.
#pragma once

#include <memory>
#include <vector>

#include "app/memory_plan.h"
#include "app/resolve.h"
#include "parallel/node_group.h"

namespace tandem::app {

// Every setting that must be the same on all nodes, by its flag's name. Not among them: what belongs to one machine
// (paths, ports, threads, logs) and what the nodes settle between them (sizes of the memory plan).
std::vector<parallel::AgreedValue> agreed_settings(const ResolvedConfig& config);

// Blocks until all nodes are there. Null for a server of one node. On return the memory plan's sizes are the least of
// all nodes'. Errors: NodeGroup::meet()'s.
Result<std::shared_ptr<parallel::NodeGroup>> meet_nodes(const ResolvedConfig& config, MemoryPlan& plan,
                                                        const Clock& clock);

}  // namespace tandem::app
