// Whole fleets under a virtual clock: delay, duplicates, cut connections, stalls, crashes and restarts, cancelled
// requests. Every request reaches exactly one end, every pool returns to its baseline, every token is right. A failure
// prints its seed.
#include <gtest/gtest.h>

#include "base/log.h"
#include "tests/sim/sim_fleet.h"

namespace tandem::testing {
namespace {

class ServingSim : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { log::configure(log::Level::kError, false); }
};

SimOptions faulty(uint64_t seed) {
  SimOptions options;
  options.seed = seed;
  options.num_prefill = 1 + int(seed % 3);
  options.num_decode = 1 + int(seed / 3 % 3);
  options.faults.cut_per_message = seed % 2 == 0 ? 0 : 0.0005;
  options.faults.duplicate_per_message = 0.05;
  options.faults.refused_connect = seed % 4 == 3 ? 0.2 : 0;
  options.num_crashes = int(seed % 4);
  return options;
}

TEST_F(ServingSim, CalmNetworkServesEveryRequestThatIsNotCancelled) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    SimOptions options;
    options.seed = seed;
    options.num_crashes = 0;
    options.stall_rate = 0;
    const SimOutcome outcome = SimFleet(options).run();
    EXPECT_EQ(outcome.failed, 0) << "seed " << seed;
    EXPECT_GE(outcome.served, 140) << "seed " << seed;
    EXPECT_GT(outcome.handover_bytes, 0u);
  }
}

TEST_F(ServingSim, FaultsEndRequestsButNeverTwiceNeverWrongAndLeakNothing) {
  int served = 0, crashes = 0, failed = 0, retractions = 0;
  for (uint64_t seed = 100; seed < 124; ++seed) {
    const SimOutcome outcome = SimFleet(faulty(seed)).run();
    served += outcome.served;
    failed += outcome.failed;
    crashes += outcome.crashes;
    retractions += outcome.retractions;
    if (::testing::Test::HasFailure()) FAIL() << "seed " << seed;
  }
  // The faults were met, and most requests lived through them.
  EXPECT_GT(served, 24 * 60);
  EXPECT_GT(failed, 0);
  EXPECT_GT(crashes, 10);
  EXPECT_GT(retractions, 0);
}

TEST_F(ServingSim, WrongBytesAreNeverServed) {
  uint64_t spoiled = 0, handovers = 0;
  int failed = 0;
  for (uint64_t seed = 300; seed < 306; ++seed) {
    SimOptions options = faulty(seed);
    options.digest_sample_rate = 1;
    options.faults.flip_per_read = 0.02;
    options.faults.foreign_per_read = 0.02;
    const SimOutcome outcome = SimFleet(options).run();  // compares every token
    spoiled += outcome.spoiled_reads;
    handovers += outcome.handovers;
    failed += outcome.failed;
    if (::testing::Test::HasFailure()) FAIL() << "seed " << seed;
  }
  EXPECT_GT(spoiled, 20u);
  EXPECT_GT(handovers, 300u);
  EXPECT_GT(failed, 0);
}

TEST_F(ServingSim, SameSeedGivesTheSameTrace) {
  const SimOutcome first = SimFleet(faulty(107)).run();
  const SimOutcome again = SimFleet(faulty(107)).run();
  const SimOutcome other = SimFleet(faulty(108)).run();
  EXPECT_EQ(first.trace, again.trace);
  EXPECT_EQ(first.served, again.served);
  EXPECT_NE(first.trace, other.trace);
}

}  // namespace
}  // namespace tandem::testing
