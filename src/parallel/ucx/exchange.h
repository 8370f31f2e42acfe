// Exchange of a group over several nodes: through pointers inside the node, through messages between nodes.
#pragma once

#include <memory>
#include <vector>

#include "parallel/expert_exchange.h"
#include "parallel/ucx/rank_port.h"

namespace tandem::parallel {

// state outlives the exchanges. Errors: a row that is longer than a message.
Result<std::vector<std::unique_ptr<ExpertExchange>>> make_node_exchanges(GroupState& state, const ExchangeShape& shape,
                                                                         Duration deadline, int32_t spins);

}  // namespace tandem::parallel
