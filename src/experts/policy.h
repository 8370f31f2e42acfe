// When to change a placement that serves: counted loads in, a decision out. Pure; time and traffic are arguments.
// Any thread; values. Prefill and decode groups have a window, a config and a state each.
#pragma once

#include <chrono>
#include <cstdint>
#include <string_view>

#include "base/result.h"
#include "experts/balancedness.h"
#include "experts/placement.h"

namespace tandem::experts {

// Sum of counts in which older windows fade. Counts are of real tokens: no padding, warm-up or draft tokens.
class LoadWindow {
 public:
  // keep: what is left of the sum when a new window begins, in [0, kShareUnit].
  LoadWindow(int32_t num_layers, int32_t num_logical, int32_t keep);

  // REQUIRES the sizes of the constructor.
  void add(const ExpertLoad& counts);
  void begin_window();

  const ExpertLoad& sum() const { return sum_; }
  // Pairs counted since begin_window(), of the layer that counted most.
  int64_t new_pairs() const;

 private:
  ExpertLoad sum_;
  std::vector<int64_t> new_pairs_;  // [num_layers]
  int32_t keep_;
};

struct RebalanceConfig {
  // Both must have passed since the last decision that changed something. A count c is uncertain by sqrt(c): with 256
  // experts and 2^20 pairs one expert's count is known to about 1.6 %.
  std::chrono::milliseconds min_interval{60'000};
  int64_t min_pairs = int64_t(1) << 20;  // in the busiest layer

  double balance_threshold = 0.9;       // after reshare, served balance under which weights move whatever they cost
  double repair_target = 0.97;          // per layer
  int32_t max_changed_per_layer = 20;   // slots
  double min_share_gain = 0.002;        // balancedness that new shares must add to be worth a switch
  double moe_share_of_step = 0.5;       // of a step's time, what falls with the busiest rank's load
  int64_t expert_bytes = 44'000'000;    // of one expert in one layer
  int64_t bytes_per_second = 1 << 30;   // at which a rank reads incoming experts
  double slowdown_while_moving = 0.05;  // of serving, while weights move
  int32_t max_backoff_doublings = 6;

  // kInvalidInput naming the field.
  Status validate() const;
};

// What the planner remembers between decisions besides the window.
struct RebalanceState {
  int32_t failures = 0;  // plans in a row that were aborted

  // Doubles with each failure, up to max_backoff_doublings.
  std::chrono::milliseconds interval(const RebalanceConfig& config) const;
};
RebalanceState after_failure(RebalanceState state);
RebalanceState after_success(RebalanceState state);

struct RebalanceInput {
  const ExpertLoad& load;  // the window's sum
  const ExpertPlacement& current;
  const EpTopology& topology;
  int64_t new_pairs = 0;
  std::chrono::milliseconds since_last{0};
  std::chrono::milliseconds next_interval{0};  // over which a gain would be had
};

enum class RebalanceAction : uint8_t { kNone, kReshare, kRepair };

struct RebalanceDecision {
  RebalanceAction action = RebalanceAction::kNone;
  std::string_view reason;    // for the log line
  ExpertPlacement placement;  // the new one; the current one with kNone
  double balance_now = 1;     // of the current placement under this load
  double balance_reshared = 1;
  double balance_planned = 1;  // of `placement`
  int64_t changed_slots = 0;
  double gain_seconds = 0, cost_seconds = 0;  // of moving weights on top of new shares, where that was looked at
};

// New shares whenever they help; moved weights if the time they save over the next interval exceeds what moving costs,
// or if the balance is under the threshold. REQUIRES a valid placement and config.
RebalanceDecision decide(const RebalanceInput& input, const RebalanceConfig& config, const RebalanceState& state);

}  // namespace tandem::experts
