// Pace: what users make the steps of a rank wait for: a sleep before each (slow_down), and a hold of decode until
// enough requests are ready (hold_admission). Nothing blocks: a rank that waits goes on voting, and between the rounds
// it takes commands, handovers and requests as always. All ranks go on at the same decision. Owner: the engine thread.
//
//   a vote says how long to sleep --decision: sleep--> asleep_ --slept, or no order any more--> the step runs
//   a vote holds decode --every rank has enough, or its deadline passed--> decode steps run
#pragma once

#include <optional>
#include <string>

#include "base/clock.h"
#include "engine/engine.h"
#include "parallel/step_protocol.h"

namespace tandem::engine {

class Pace {
 public:
  explicit Pace(std::string log_scope) : log_scope_(std::move(log_scope)) {}

  void take(const SlowDownCommand& command) { sleep_ms_ = released_ ? 0 : command.sleep_ms; }
  void take(const HoldCommand& command, TimePoint now);
  // The server ends: nothing waits any more, now and later.
  void release(TimePoint now);

  // Before each vote while something is held. ready: requests of this rank that a decode step would take.
  void look(int32_t ready, TimePoint now);
  bool is_asleep(TimePoint now) const { return asleep_ && !released_ && now < wake_at_; }  // no batch is formed
  bool holds_decode() const { return hold_.has_value() && !hold_->over; }                  // as of the last look
  void fill(parallel::StepVote& vote, TimePoint now);

  // What a decision means for the step it is about. kAgain: the wait is over, but nobody has formed a batch yet.
  enum class Verdict : uint8_t { kRun, kWait, kAgain };
  Verdict judge(const parallel::StepDecision& decision, TimePoint now);

  // How long to wait for the next vote: at most `longest`.
  Duration next_look(Duration longest, TimePoint now) const;

  uint32_t sleep_ms() const { return sleep_ms_; }
  bool asleep() const { return asleep_; }
  int32_t held_for() const { return hold_ ? hold_->wanted : 0; }  // requests; 0: nothing is held

 private:
  struct Hold {
    int32_t wanted = 0, ready = 0;
    Duration timeout{};
    TimePoint begin{}, next_line{};
    bool over = false;   // there are enough, or the deadline has passed
    bool voted = false;  // the group has been told: a decision may be about it
  };
  void end_hold(const char* reason, TimePoint now);

  const std::string log_scope_;
  uint32_t sleep_ms_ = 0;  // before each step, as ordered here; what is slept is the longest of the group
  bool asleep_ = false;
  TimePoint asleep_since_{}, wake_at_{};
  std::optional<Hold> hold_;
  uint8_t hold_version_ = 0;
  bool released_ = false;
};

}  // namespace tandem::engine
