#include "parallel/step_protocol.h"

#include <algorithm>

#include "base/check.h"

namespace tandem::parallel {
namespace {

// kExtend > kDecode > everything else. A rank that votes kIdle brings no tokens, so it cannot make a step happen.
int strength(StepKind kind) {
  switch (kind) {
    case StepKind::kExtend: return 2;
    case StepKind::kDecode: return 1;
    case StepKind::kIdle:
    case StepKind::kNone: return 0;
  }
  return 0;
}

// Decode waits while a rank holds it back, or while the newest order has not reached every rank: all begin at once.
// Who wants to leave, or follows another rank, holds nobody up.
bool holds_decode(std::span<const StepVote> votes) {
  const StepVote* known = nullptr;
  for (const StepVote& vote : votes) {
    if (vote.wants_shutdown != 0 || vote.follows != 0) continue;
    if (vote.holds != 0 || (known != nullptr && known->hold_version != vote.hold_version)) return true;
    known = &vote;
  }
  return false;
}

}  // namespace

StepDecision decide(std::span<const StepVote> votes) {
  CHECK(!votes.empty());
  StepDecision decision;
  decision.step = votes[0].step;
  decision.num_ranks = uint32_t(votes.size());
  decision.shutdown = 1;
  decision.sleep_ready = 1;
  bool can_split = true, same_kind = true;
  decision.change_version = votes[0].change_version;
  decision.holds = holds_decode(votes) ? 1 : 0;
  const auto kind_of = [&](const StepVote& vote) {
    return decision.holds != 0 && vote.kind == StepKind::kDecode ? StepKind::kNone : vote.kind;
  };
  decision.profile_version = votes[0].profile_version;
  for (const StepVote& vote : votes) {
    CHECK(vote.step == decision.step);
    const StepKind kind = kind_of(vote);
    if (strength(kind) > strength(decision.kind)) decision.kind = kind;
    decision.shutdown &= uint8_t(vote.wants_shutdown != 0);
    decision.sleep_ready &= uint8_t(vote.sleep_ready != 0);
    can_split = can_split && (vote.can_split != 0 || vote.follows != 0);
    if (kind == vote.kind) {
      decision.max_tokens = std::max(decision.max_tokens, vote.num_tokens);
      decision.total_tokens += vote.num_tokens;
    }
    decision.sleep_ms = std::max(decision.sleep_ms, vote.sleep_ms);
    decision.change_version = std::min(decision.change_version, vote.change_version);
    if (vote.follows == 0) decision.profile_version = std::min(decision.profile_version, vote.profile_version);
    decision.profile_refused = std::max(decision.profile_refused, vote.profile_refused);
  }
  for (const StepVote& vote : votes) {
    same_kind = same_kind && (strength(kind_of(vote)) == 0 || kind_of(vote) == decision.kind);
  }
  decision.two_batches = uint8_t(can_split && same_kind && strength(decision.kind) > 0);
  return decision;
}

}  // namespace tandem::parallel
