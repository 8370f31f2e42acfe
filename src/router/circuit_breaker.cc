#include "router/circuit_breaker.h"

namespace tandem::router {

CircuitBreaker::State CircuitBreaker::state(TimePoint now) const {
  if (!open_) return State::kClosed;
  return now - opened_at_ >= config_.timeout ? State::kHalfOpen : State::kOpen;
}

bool CircuitBreaker::allows(TimePoint now) const {
  if (!config_.enabled) return true;
  switch (state(now)) {
    case State::kClosed: return true;
    case State::kOpen: return false;
    case State::kHalfOpen: return trials_ < config_.success_threshold;
  }
  return false;
}

bool CircuitBreaker::begin(TimePoint now) {
  if (!config_.enabled || state(now) != State::kHalfOpen) return false;
  ++trials_;
  return true;
}

void CircuitBreaker::end(bool trial, Outcome outcome, TimePoint now) {
  trials_ -= trial;
  if (outcome == Outcome::kNeutral || !config_.enabled) return;
  if (open_) {
    if (!trial || state(now) == State::kOpen) return;  // a late answer, from before it opened (again)
    if (outcome == Outcome::kFailure) return open(now);
    if (++trial_successes_ >= config_.success_threshold) open_ = false;
    return;
  }
  if (outcome == Outcome::kSuccess) return;
  failures_.push_back(now);
  while (now - failures_.front() > config_.window) failures_.pop_front();
  if (static_cast<int>(failures_.size()) >= config_.failure_threshold) open(now);
}

void CircuitBreaker::reset() {
  open_ = false;
  trial_successes_ = 0;
  failures_.clear();
}

void CircuitBreaker::open(TimePoint now) {
  open_ = true;
  opened_at_ = now;
  trial_successes_ = 0;
  failures_.clear();
}

const char* to_string(CircuitBreaker::State state) {
  switch (state) {
    case CircuitBreaker::State::kClosed: return "closed";
    case CircuitBreaker::State::kOpen: return "open";
    case CircuitBreaker::State::kHalfOpen: return "half_open";
  }
  return "?";
}

}  // namespace tandem::router
