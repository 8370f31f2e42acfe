#include "base/constant_time.h"

#include <gtest/gtest.h>

namespace tandem {
namespace {

TEST(SameInConstantTime, ComparesWholeTexts) {
  EXPECT_TRUE(same_in_constant_time("abc", "abc"));
  EXPECT_TRUE(same_in_constant_time("", ""));
  EXPECT_FALSE(same_in_constant_time("abc", "abd"));
  EXPECT_FALSE(same_in_constant_time("abc", "ab"));
  EXPECT_FALSE(same_in_constant_time("abab", "ab"));
  EXPECT_FALSE(same_in_constant_time("abc", ""));
  EXPECT_FALSE(same_in_constant_time("", "abc"));
}

}  // namespace
}  // namespace tandem
