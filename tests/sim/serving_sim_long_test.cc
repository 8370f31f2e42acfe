// The same fleets over thousands of seeds, with larger fleets and heavier faults. Not in the default suite.
#include <gtest/gtest.h>

#include <cstdio>

#include "base/log.h"
#include "tests/sim/sim_fleet.h"

namespace tandem::testing {
namespace {

TEST(ServingSimLong, ThousandsOfSeeds) {
  log::configure(log::Level::kError, false);
  SimOutcome sum;
  for (uint64_t seed = 1000; seed < 4000; ++seed) {
    SimOptions options;
    options.seed = seed;
    options.num_prefill = 1 + int(seed % 4);
    options.num_decode = 1 + int(seed / 4 % 4);
    options.num_requests = 250;
    options.arrivals = std::chrono::milliseconds(8);
    options.num_crashes = int(seed % 7);
    options.stall_rate = seed % 5 == 0 ? 0.01 : 0.002;
    options.faults.cut_per_message = seed % 3 == 0 ? 0.002 : 0;
    options.faults.duplicate_per_message = 0.1;
    options.faults.refused_connect = seed % 4 == 3 ? 0.3 : 0;
    if (seed % 2 == 0) options.faults.slowest_read = std::chrono::milliseconds(300);
    const SimOutcome outcome = SimFleet(options).run();
    sum.served += outcome.served;
    sum.cancelled += outcome.cancelled;
    sum.failed += outcome.failed;
    sum.crashes += outcome.crashes;
    sum.retractions += outcome.retractions;
    if (::testing::Test::HasFailure()) FAIL() << "seed " << seed;
  }
  std::printf("served %d, cancelled %d, failed %d, crashes %d, retractions %d\n", sum.served, sum.cancelled, sum.failed,
              sum.crashes, sum.retractions);
  EXPECT_GT(sum.served, 3000 * 80);
}

}  // namespace
}  // namespace tandem::testing
