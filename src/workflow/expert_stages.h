// The workflow's stages about experts: what a group's experts were asked for, and a better placement. Blocking.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "base/json.h"
#include "experts/placement.h"
#include "workflow/deployment.h"
#include "workflow/report.h"

namespace tandem::workflow {

// physical_to_logical_map and replica_share of GET /expert_placement as values. Pure.
Result<experts::ExpertPlacement> parse_placement(simdjson::dom::element answer, int32_t num_logical);

// Records on every instance of the role for `length`, dumps, reads the dumps (which must lie where this process can
// read them) and judges their sum by the placement of the first instance, over its num_ranks ranks.
// wait: as HalfParts::wait.
Result<ExpertFigures> record_experts(const Deployment& deployment, Role role, int32_t num_ranks, Duration length,
                                     const std::function<bool(Duration)>& wait);

// POST /rebalance on every instance of the role, and waits until all of it is carried out. Returns one line about it.
// Errors: a refusal, a plan that failed (with the server's reason), the timeout.
Result<std::string> rebalance_experts(const Deployment& deployment, Role role, const std::string& algorithm,
                                      Duration timeout, const std::function<bool(Duration)>& wait);

}  // namespace tandem::workflow
