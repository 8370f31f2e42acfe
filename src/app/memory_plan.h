// How memory is divided before any of it is allocated. Pure.
#pragma once

#include <string>
#include <vector>

#include "app/resolve.h"
#include "model/model.h"

namespace tandem::app {

struct MemoryPlan {
  int32_t max_total_tokens = 0;  // KV pool of a rank, multiple of the page size
  int32_t max_running_requests = 0;
  model::ForwardLimits limits;
  int64_t weight_bytes = 0;  // shared by the ranks
  // Of one rank; cache and logits of one attention group.
  int64_t expert_bytes = 0, workspace_bytes = 0, exchange_bytes = 0, kv_bytes = 0, logits_bytes = 0;
  int64_t available_bytes = 0;
  std::vector<std::string> lines;  // what is printed, one line per consumer and the sum
};

// How the model of every rank is loaded under this configuration.
model::LoadOptions load_options(const ResolvedConfig& config, const model::ForwardLimits& limits, int num_threads);
int threads_per_rank(const ResolvedConfig& config, int num_threads);

// available_bytes: free memory now. Error: the plan does not fit, with the sum and the flags to change.
Result<MemoryPlan> plan_memory(const ResolvedConfig& config, int num_threads, int64_t available_bytes);

}  // namespace tandem::app
