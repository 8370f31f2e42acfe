#include "engine/step/pace.h"

#include <fmt/format.h>

#include <algorithm>

#include "api/json_text.h"
#include "base/log.h"

namespace tandem::engine {
namespace {

constexpr Duration kHoldLineEvery = std::chrono::seconds(5);
// A rank that is ready before the others asks them again this much later.
constexpr Duration kShortestLook = std::chrono::milliseconds(1);

Duration milliseconds(uint32_t count) { return std::chrono::milliseconds(count); }

// As Python prints a float: 180.0, 0.5.
std::string shown(double seconds) {
  std::string text;
  api::append_json_number(text, seconds);
  return text;
}

}  // namespace

void Pace::take(const HoldCommand& command, TimePoint now) {
  if (command.version == hold_version_) return;  // repeated: not every rank had room for it the first time
  hold_version_ = command.version;
  if (hold_) end_hold(command.running_requests > 0 ? "another one was asked for" : "released by request", now);
  if (command.running_requests <= 0 || released_) return;
  hold_ = Hold{command.running_requests, 0, command.timeout, now, now + kHoldLineEvery};
  log::write(log::Level::kInfo, log_scope_,
             fmt::format("Hold admission: decode waits for {} requests per rank, {}s at most", hold_->wanted,
                         shown(seconds(hold_->timeout))));
}

void Pace::release(TimePoint now) {
  released_ = true;
  sleep_ms_ = 0;
  if (hold_) end_hold("the server ends", now);
}

void Pace::look(int32_t ready, TimePoint now) {
  if (!hold_) return;
  hold_->ready = ready;
  hold_->over = ready >= hold_->wanted || now - hold_->begin >= hold_->timeout;
  if (now < hold_->next_line) return;
  hold_->next_line = now + kHoldLineEvery;
  log::write(log::Level::kInfo, log_scope_,
             fmt::format("Hold admission: {} of {} requests ready after {:.1f}s", ready, hold_->wanted,
                         seconds(now - hold_->begin)));
}

void Pace::end_hold(const char* reason, TimePoint now) {
  log::write(log::Level::kInfo, log_scope_,
             fmt::format("Hold admission ends after {:.1f}s with {} of {} requests ready: {}",
                         seconds(now - hold_->begin), hold_->ready, hold_->wanted, reason));
  hold_.reset();
}

void Pace::fill(parallel::StepVote& vote, TimePoint now) {
  vote.sleep_ms = sleep_ms_;
  vote.sleep_ready = released_ || (asleep_ && now >= wake_at_) ? 1 : 0;
  vote.hold_version = hold_version_;
  vote.holds = holds_decode() ? 1 : 0;
  if (hold_) hold_->voted = true;
}

Pace::Verdict Pace::judge(const parallel::StepDecision& decision, TimePoint now) {
  if (hold_ && hold_->voted && decision.holds == 0) {
    end_hold(hold_->ready >= hold_->wanted ? "every rank is ready" : "the deadline passed", now);
  }
  const bool runs = decision.kind != parallel::StepKind::kNone;
  if (asleep_) {
    if (decision.sleep_ms > 0 && decision.sleep_ready == 0) {
      wake_at_ = asleep_since_ + milliseconds(decision.sleep_ms);  // may have been changed meanwhile
      return Verdict::kWait;
    }
    asleep_ = false;
    return runs ? Verdict::kRun : Verdict::kAgain;
  }
  if (!runs || decision.sleep_ms == 0) return Verdict::kRun;
  asleep_ = true;
  asleep_since_ = now;
  wake_at_ = now + milliseconds(decision.sleep_ms);
  log::write(log::Level::kInfo, log_scope_,
             fmt::format("Scheduler.run_batch sleep {}s", shown(double(decision.sleep_ms) / 1e3)));
  return Verdict::kWait;
}

Duration Pace::next_look(Duration longest, TimePoint now) const {
  return asleep_ ? std::clamp(wake_at_ - now, std::min(kShortestLook, longest), longest) : longest;
}

}  // namespace tandem::engine
