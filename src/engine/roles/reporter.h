// Reporter: when the Prefill and Decode lines are written and the gauges refreshed. Owner: the engine thread.
#pragma once

#include "engine/step/core.h"
#include "engine/step/stats.h"

namespace tandem::engine {

class Reporter {
 public:
  explicit Reporter(Core& core);
  // A prefill batch was formed and is about to run; load is as before its allocation but for the queue.
  void prefill_formed(const PrefillFigures& figures, const LoadFigures& load, double new_token_ratio);
  // A decode step with `num_running` requests is done.
  void decode_done(int32_t num_running, int64_t tokens, const LoadFigures& load, double new_token_ratio);
  // Idle: gauges every 30 s.
  void idle(const LoadFigures& load, double new_token_ratio);

 private:
  void show(const LoadFigures& load, double new_token_ratio);
  Core& core_;
  RateMeter generated_, prefilled_;
  int32_t steps_since_line_ = 0;
  TimePoint shown_at_{};
};

}  // namespace tandem::engine
