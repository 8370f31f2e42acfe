#include "base/log.h"

#include <gtest/gtest.h>

namespace tandem {
namespace {

TEST(Log, TextsOfOthersCannotBeginALineOrSpeakToTheTerminal) {
  ::testing::internal::CaptureStderr();
  log::info("rid='{}'", "a\n[2026-01-01 00:00:00] forged\r\x1b[2J\tb");
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(said.find('\n'), said.size() - 1) << said;
  EXPECT_NE(said.find("rid='a\\n[2026-01-01 00:00:00] forged\\x0d\\x1b[2J\\x09b'"), std::string::npos) << said;
}

TEST(Log, OtherTextStaysAsItIs) {
  ::testing::internal::CaptureStderr();
  log::warning("schöne Grüße {}", 5);
  EXPECT_NE(::testing::internal::GetCapturedStderr().find("] WARNING: schöne Grüße 5\n"), std::string::npos);
}

}  // namespace
}  // namespace tandem
