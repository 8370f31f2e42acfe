// CircuitBreaker: keeps requests away from an instance that fails them.
//
//   closed --failure_threshold failures within window--> open --timeout--> half-open
//   half-open --success_threshold successes--> closed;  half-open --a failure--> open;  any --reset--> closed
//
// Half-open lets at most success_threshold requests try at a time. Pure: time is an argument. One thread.
#pragma once

#include <deque>

#include "router/config.h"

namespace tandem::router {

enum class Outcome { kSuccess, kFailure, kNeutral };  // kNeutral: cancelled, or the client's fault

class CircuitBreaker {
 public:
  enum class State { kClosed, kOpen, kHalfOpen };

  explicit CircuitBreaker(BreakerConfig config) : config_(config) {}

  bool allows(TimePoint now) const;
  // Around each request; every begin() is matched by one end(). What begin() returns, whether the request is a trial of
  // the half-open state, is given to end(): requests from before the breaker opened say nothing about its recovery.
  bool begin(TimePoint now);
  void end(bool trial, Outcome outcome, TimePoint now);
  // The instance was down and is back, perhaps as another process: what its predecessor failed does not count.
  void reset();
  State state(TimePoint now) const;

 private:
  void open(TimePoint now);

  BreakerConfig config_;
  bool open_ = false;  // also while half-open
  TimePoint opened_at_{};
  int trials_ = 0, trial_successes_ = 0;
  std::deque<TimePoint> failures_;  // while closed; within the window, at most failure_threshold
};

const char* to_string(CircuitBreaker::State state);

}  // namespace tandem::router
