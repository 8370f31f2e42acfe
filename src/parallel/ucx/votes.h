// Votes of a group over several nodes. Inside a node a vote is a plain write and a release store, as in one process;
// whichever rank completes its node's votes sends them all in one message to each other node, so no rank has to be
// woken to send, and any rank of the receiving node may take them in: none can decide before that one has voted, too.
#pragma once

#include <memory>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/ucx/rank_port.h"

namespace tandem::parallel {

// state outlives the communicators.
std::vector<std::unique_ptr<Communicator>> make_node_communicators(GroupState& state, Duration deadline);

}  // namespace tandem::parallel
