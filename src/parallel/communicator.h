// Communicator: how the ranks of one group vote. Non-blocking: post, then poll until the votes of all ranks are there.
// Each rank holds its own Communicator and calls it from its engine thread.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/result.h"
#include "parallel/missing_ranks.h"
#include "parallel/step_protocol.h"

namespace tandem::parallel {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual Rank rank() const = 0;
  virtual int32_t num_ranks() const = 0;
  // At most one vote ahead of the slowest rank. CHECKs that steps come in order (the first may be any, the same on all
  // ranks) and that the decision of the step before was taken. After a failed poll_decision a no-op.
  virtual void post_vote(const StepVote& vote, TimePoint now) = 0;
  // The decision of the posted step, nothing while votes are missing, or kPeerLost after the deadline, naming the ranks
  // that did not vote and the step.
  virtual Result<std::optional<StepDecision>> poll_decision(TimePoint now) = 0;
  // Parks the calling thread, after a short spin, until the timeout passed, wake() was called, or the vote it waits for
  // arrived: with a vote posted, the last missing one; otherwise any other rank's vote for the next step (how an idle
  // rank learns that the group moves on). No-op in the simulation.
  virtual void wait(Duration timeout) = 0;
  // The ranks whose vote for the posted step is not here. Empty where that is not known.
  virtual MissingRanks missing() const { return {}; }
  // Any thread: ends the current or the next wait early.
  virtual void wake() {}
};

// All ranks of one process. deadline: how long a rank may be missing before the others give up.
std::vector<std::unique_ptr<Communicator>> make_local_communicators(int32_t num_ranks, Duration deadline);

}  // namespace tandem::parallel
