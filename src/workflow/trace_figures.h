// What the report says of a profile: the steps of one rank and where their time went. Pure.
#pragma once

#include <vector>

#include "profile/trace_reader.h"
#include "workflow/report.h"

namespace tandem::workflow {

// Steps of the role's kind (decode and combined: decode steps; prefill: extend steps), idle ones left out.
TraceFigures trace_figures(const profile::Trace& trace, Role role);

// Operators and waits of those steps, by name, the longest first; the rest of the step as "everything else".
std::vector<StepPart> step_breakdown(const profile::Trace& trace, Role role);

}  // namespace tandem::workflow
