// Whether a measured number may be believed, and why not. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "workflow/samples.h"

namespace tandem::workflow {

// What the load client saw of the requests that ended within a run.
struct LoadFigures {
  int64_t completed = 0, failed = 0;  // failed: an error, an abort, or fewer tokens than asked for
  int64_t short_outputs = 0;          // of the failed: ended early without saying so
  int64_t output_tokens = 0;
  std::string first_error = {};  // of the failed; empty: none
};

// One step as the trace shows it.
struct TraceFigures {
  int64_t num_steps = 0;
  double step_ms = 0;  // mean from one step's begin to the next one's
};

struct Limits {
  double variation = 0.10;          // of the rate in ten parts of the window
  double disagreement = 0.02;       // of the two ways to compute tokens/s/GPU
  double imbalance = 0.10;          // of ranks
  double pool_peak = 0.98;          // share of the KV pool in use
  double starved = 0.5;             // requests that wait for blocks at a rank that is not full, on average
  double saturation = 0.90;         // running requests as a share of the target, per rank
  double trace_disagreement = 0.2;  // step time of the trace against the window's
};

// What one half of the workflow (prefill-bound or decode-bound) measured.
struct Evidence {
  WindowFigures window;
  LoadFigures load;
  std::optional<TraceFigures> trace;  // absent: none was wanted
  int32_t target_running = 0;         // per rank; 0: no target (prefill-bound)
  std::vector<std::string> faults;    // stages that failed; each is a reason by itself
};

struct Reason {
  std::string code;    // see docs/reproduce.md: zero_output, failed_transfers, ...
  std::string detail;  // one line with the figure and the limit
};

// Empty: valid.
std::vector<Reason> judge(const Evidence& evidence, const Limits& limits);

}  // namespace tandem::workflow
