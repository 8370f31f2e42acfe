// Values of the balancer and what the nodes of a server send each other of them. Pure.
#pragma once

#include <span>

#include "api/node_experts.h"
#include "base/result.h"
#include "engine/expert_port.h"
#include "experts/placement.h"

namespace tandem::engine {

// plan and base are the caller's to fill.
api::NodeExpertPlan plan_message(const experts::ExpertPlacement& target);
// kInvalidInput or kCorrupt where it is no placement of this model and topology, or its digest is another's.
Result<experts::ExpertPlacement> read_plan(const api::NodeExpertPlan& plan, const experts::ExpertPlacement& current,
                                           const experts::EpTopology& topology);

// The recordings of several ranks as one: the sum of each step that all of them have kept.
ExpertRecording sum_recordings(std::span<const ExpertRecording> ranks, size_t cells);

// Takes up to max_bytes of counts, one step at least, from the end of the recording into the answer.
void move_steps(ExpertRecording& from, size_t cells, size_t max_bytes, api::NodeExpertAnswer& answer);

}  // namespace tandem::engine
