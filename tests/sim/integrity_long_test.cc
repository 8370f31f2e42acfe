// A million handovers through caches so small that every block is used again and again, with reads that bring wrong
// bits or another block's bytes: each token is compared, and no wrong byte is ever computed with. Not in the default
// suite.
#include <gtest/gtest.h>

#include <cstdio>

#include "base/log.h"
#include "tests/sim/sim_fleet.h"

namespace tandem::testing {
namespace {

constexpr uint64_t kHandovers = 1'000'000;

TEST(IntegrityLong, AMillionHandoversServeNoWrongByte) {
  log::configure(log::Level::kError, false);
  uint64_t handovers = 0, spoiled = 0, bytes = 0;
  int64_t served = 0, failed = 0;
  uint64_t seed = 1'000'000;
  for (; handovers < kHandovers; ++seed) {
    SimOptions options;
    options.seed = seed;
    options.num_requests = 1000;
    options.cancel_rate = 0.05;
    options.num_crashes = 1;
    options.digest_sample_rate = 1;
    options.arrivals = std::chrono::milliseconds(4);
    options.faults.duplicate_per_message = 0.05;
    options.faults.flip_per_read = 0.01;
    options.faults.foreign_per_read = 0.01;
    const SimOutcome outcome = SimFleet(options).run();
    if (::testing::Test::HasFailure()) FAIL() << "seed " << seed;
    handovers += outcome.handovers;
    spoiled += outcome.spoiled_reads;
    bytes += outcome.handover_bytes;
    served += outcome.served;
    failed += outcome.failed;
  }
  std::printf("%llu handovers of %llu bytes in %llu runs, %llu reads spoiled: %lld requests served, %lld failed\n",
              (unsigned long long)handovers, (unsigned long long)bytes, (unsigned long long)(seed - 1'000'000),
              (unsigned long long)spoiled, (long long)served, (long long)failed);
  EXPECT_GT(spoiled, kHandovers / 100);
}

}  // namespace
}  // namespace tandem::testing
