// The one step protocol. Before each step every rank of a group, idle ones too, says what it wants in one small vote;
// from the same votes every rank derives the same decision by a pure function. Whatever must happen on all ranks at
// once is decided here and nowhere else. Values; votes go between nodes as they are (fixed size, little-endian).
// A group that waits (slow-down, held decode, nothing to do) goes on voting: no wait of a rank outlasts a round.
#pragma once

#include <cstdint>
#include <span>

namespace tandem::parallel {

enum class StepKind : uint8_t {
  kNone = 0,  // nothing to run anywhere: no forward, park
  kIdle = 1,  // this rank has no tokens, another has: take part with zero tokens
  kDecode = 2,
  kExtend = 3,  // prefill (chunk)
};

struct StepVote {
  uint64_t step = 0;        // the step this vote is for
  uint32_t num_tokens = 0;  // tokens this rank would run
  uint32_t num_sequences = 0;
  StepKind kind = StepKind::kNone;
  uint8_t wants_shutdown = 0;   // drained and ready to leave
  uint8_t sleep_ready = 0;      // has slept as long as the slow-down below says; false: the group waits
  uint8_t can_split = 0;        // its tokens, or none, can be cut into two batches
  uint32_t sleep_ms = 0;        // requested pause before each step (slow_down)
  uint32_t change_version = 0;  // newest pending change of the placement that this rank has prepared
  uint8_t hold_version = 0;     // newest order to hold decode back that this rank has taken, modulo 256
  uint8_t holds = 0;            // what it waits for by that order is not there yet
  uint8_t follows = 0;  // runs the batches of another rank: has no requests of its own, and no say in how they run
  uint32_t profile_version = 0;  // newest order to start or stop profiling that this rank has prepared
  uint32_t profile_refused = 0;  // newest of those that it cannot follow
};
static_assert(sizeof(StepVote) == 40);

struct StepDecision {
  uint64_t step = 0;
  StepKind kind = StepKind::kNone;  // strongest of the group: extend > decode > none (a vote for kIdle counts as none)
  uint8_t shutdown = 0;             // every rank wants it
  uint8_t sleep_ready = 0;          // every rank has slept: the step may run
  uint8_t two_batches = 0;          // every rank can split, and those with tokens run the same kind
  uint32_t max_tokens = 0;          // over ranks; sizes of padded exchanges
  uint32_t total_tokens = 0;
  uint32_t sleep_ms = 0;        // largest request
  uint32_t change_version = 0;  // smallest prepared version: what may be switched before this step
  uint32_t num_ranks = 0;
  uint8_t holds = 0;  // a rank holds decode back, or not all know of the same order: decode batches count as none
  uint32_t profile_version = 0;  // smallest: orders up to it are followed before this step
  uint32_t profile_refused = 0;  // largest: that order is refused on all ranks
  bool operator==(const StepDecision&) const = default;
};
static_assert(sizeof(StepDecision) == 48);

// votes: one per rank, rank order, all for the same step (CHECK). Pure.
StepDecision decide(std::span<const StepVote> votes);

}  // namespace tandem::parallel
