#include "workflow/plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace tandem::workflow {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(Ticks, AreRoundAndReachTheTop) {
  EXPECT_THAT(ticks(10, 5), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(ticks(0.7, 4), ElementsAre(0, 0.2, 0.4, ::testing::DoubleNear(0.6, 1e-12), 0.8));
  EXPECT_THAT(ticks(0, 4), ElementsAre(0));
}

TEST(LinePlot, NamesItsSeriesAndBandsEscaped) {
  LinePlot plot{"rate", "s", "tokens/s", {{"rank <0>", {{0, 1}, {1, 2}}}, {"b", {{0, 1}, {1, 2}}}}, {}};
  plot.bands = {{0.2, 0.8, "measured & kept", true}};
  const std::string svg = line_plot(plot);
  EXPECT_THAT(svg, HasSubstr("rank &lt;0&gt;"));
  EXPECT_THAT(svg, HasSubstr("measured &amp; kept"));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
}

TEST(LinePlot, WithoutPointsSaysSo) { EXPECT_THAT(line_plot({"rate", "s", "y", {}, {}}), HasSubstr("nothing")); }

TEST(Histogram, SharesOfEverySeriesAddUpToOne) {
  const Histogram plot = make_histogram("itl", "ms", {{"before", {1, 2, 3, 1000}}, {"after", {1, 1, 1}}});
  ASSERT_EQ(plot.series.size(), 2u);
  for (const Series& series : plot.series) {
    double sum = 0;
    for (const auto& [edge, share] : series.points) sum += share;
    EXPECT_NEAR(sum, 1, 1e-9) << series.name;
  }
  EXPECT_THAT(histogram(plot), Not(HasSubstr("nan")));
  EXPECT_THAT(histogram(make_histogram("itl", "ms", {})), HasSubstr("nothing"));
}

}  // namespace
}  // namespace tandem::workflow
