#include "loadgen/progress.h"

#include <gtest/gtest.h>

namespace tandem::loadgen {
namespace {

TimePoint at(double s) { return TimePoint(from_seconds(s)); }

TEST(ProgressLine, ATerminalGetsABarThatIsRewritten) {
  std::string out;
  ProgressLine line([&](std::string_view text) { out += text; }, true, 200, at(0));
  line.update(50, 2, at(10));
  EXPECT_EQ(out, "\r 25%|#######-----------------------| 50/200 [00:10<00:30, 5.00 req/s, 2 failed]");
  out.clear();
  line.update(50, 2, at(10));
  EXPECT_EQ(out, "") << "nothing changed";
  line.finish(200, 2, at(40));
  EXPECT_EQ(out, "\r100%|##############################| 200/200 [00:40<00:00, 5.00 req/s, 2 failed]\n");
}

TEST(ProgressLine, ElsewhereALineAtEachTenthOrAfterHalfAMinute) {
  std::string out;
  ProgressLine line([&](std::string_view text) { out += text; }, false, 100, at(0));
  line.update(9, 0, at(5));
  EXPECT_EQ(out, "");
  line.update(20, 0, at(10));
  EXPECT_EQ(out, "20/100 [00:10<00:40, 2.00 req/s]\n");
  out.clear();
  line.update(30, 0, at(10.5));
  EXPECT_EQ(out, "") << "not more often than once a second";
  line.update(30, 0, at(4000));
  EXPECT_EQ(out, "30/100 [1:06:40<2:35:33, 0.01 req/s]\n");
  out.clear();
  line.update(30, 0, at(4030));
  EXPECT_NE(out, "") << "still alive";
}

TEST(ProgressLine, NoSinkMeansNoOutput) {
  ProgressLine line(nullptr, true, 1, at(0));
  line.update(1, 0, at(1));
  line.finish(1, 0, at(1));
}

}  // namespace
}  // namespace tandem::loadgen
