// One half of the workflow on a running deployment: saturate, settle, measure, profile, record experts, rebalance,
// measure again. The caller's thread; it blocks until the half is done. Every wait has a deadline; a stage that fails
// is noted and the rest goes on where it can.
#pragma once

#include <functional>
#include <stop_token>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "workflow/deployment.h"
#include "workflow/load.h"
#include "workflow/report.h"

namespace tandem::workflow {

struct HalfPlan {
  std::string name;           // "decode-bound"
  Role role = Role::kDecode;  // whose tokens count
  std::string split;          // for the report
  LoadShape load;
  int32_t target_running = 0;  // decode: requests per rank that must run; 0: none
  Duration saturate_timeout = std::chrono::seconds(60);
  Duration settle = std::chrono::seconds(5), settle_timeout = std::chrono::seconds(60);
  Duration window = std::chrono::seconds(15);
  int32_t profile_steps = 20;                 // 0: no profile
  Duration record = std::chrono::seconds(5);  // of expert hits; zero: none, and no rebalancing
  bool rebalance = true;
  std::string algorithm;  // of /rebalance; empty: the server's
  Limits limits;
  double expected_end_s = 0;    // of the whole workflow, on the deployment's clock: for the time left
  std::string trace_directory;  // absolute, and the servers' as well
};

struct HalfParts {
  const Deployment* deployment = nullptr;
  const Clock* clock = nullptr;
  std::stop_token stop;
  std::function<void(std::string_view)> print;  // lines of progress
  std::function<bool(Duration)> wait;           // false: asked to stop
};

// About how long it will take.
Duration expected_time(const HalfPlan& plan);
HalfReport run_half(const HalfPlan& plan, const HalfParts& parts);

}  // namespace tandem::workflow
