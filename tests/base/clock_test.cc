#include "base/clock.h"

#include <gtest/gtest.h>

namespace tandem {
namespace {

TEST(ManualClock, MovesOnlyWhenAdvanced) {
  ManualClock clock;
  TimePoint begin = clock.now();
  EXPECT_EQ(clock.now(), begin);
  clock.advance(from_seconds(1.5));
  EXPECT_DOUBLE_EQ(seconds(clock.now() - begin), 1.5);
}

TEST(SystemClock, DoesNotRunBackwards) {
  SystemClock clock;
  TimePoint first = clock.now();
  EXPECT_GE(clock.now(), first);
  EXPECT_GT(clock.unix_seconds(), 1.7e9);
}

}  // namespace
}  // namespace tandem
