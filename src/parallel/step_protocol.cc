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
  for (const StepVote& vote : votes) {
    CHECK(vote.step == decision.step);
    if (strength(vote.kind) > strength(decision.kind)) decision.kind = vote.kind;
    decision.shutdown &= uint8_t(vote.wants_shutdown != 0);
    decision.sleep_ready &= uint8_t(vote.sleep_ready != 0);
    can_split = can_split && (vote.can_split != 0 || vote.follows != 0);
    decision.max_tokens = std::max(decision.max_tokens, vote.num_tokens);
    decision.total_tokens += vote.num_tokens;
    decision.sleep_ms = std::max(decision.sleep_ms, vote.sleep_ms);
    decision.change_version = std::min(decision.change_version, vote.change_version);
  }
  for (const StepVote& vote : votes) {
    same_kind = same_kind && (strength(vote.kind) == 0 || vote.kind == decision.kind);
  }
  decision.two_batches = uint8_t(can_split && same_kind && strength(decision.kind) > 0);
  return decision;
}

}  // namespace tandem::parallel
