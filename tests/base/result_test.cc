#include "base/result.h"

#include <gtest/gtest.h>

#include <memory>

namespace tandem {
namespace {

Result<int> half(int value) {
  if (value % 2 != 0) return invalid_input("odd");
  return value / 2;
}

Result<int> quarter(int value) {
  ASSIGN_OR_RETURN(int once, half(value));
  ASSIGN_OR_RETURN(int twice, half(once));
  return twice;
}

Status check_quarter(int value) {
  RETURN_IF_ERROR(quarter(value));
  return Ok{};
}

TEST(Result, CarriesAValueOrAnErrorThroughTheMacros) {
  EXPECT_EQ(*quarter(8), 2);
  EXPECT_EQ(quarter(6).error().message, "odd");
  EXPECT_EQ(quarter(6).error().code, ErrorCode::kInvalidInput);
  EXPECT_TRUE(check_quarter(4));
  EXPECT_FALSE(check_quarter(3));
}

TEST(Result, HoldsMoveOnlyValues) {
  Result<std::unique_ptr<int>> made = std::make_unique<int>(5);
  std::unique_ptr<int> taken = std::move(made).value();
  EXPECT_EQ(*taken, 5);
}

TEST(ResultDeathTest, ReadingTheWrongSideEndsTheProcess) {
  Result<int> failed = half(1);
  EXPECT_DEATH(static_cast<void>(failed.value()), "CHECK");
  Result<int> good = half(2);
  EXPECT_DEATH(static_cast<void>(good.error()), "CHECK");
}

}  // namespace
}  // namespace tandem
