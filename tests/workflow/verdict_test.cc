#include "workflow/verdict.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/check.h"
#include "tests/workflow/made_samples.h"

namespace tandem::workflow {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

Evidence good() {
  Evidence evidence;
  auto figures = measure(steady_decode({16, 16}, 10.0, 21), Role::kDecode);
  CHECK(figures.has_value());
  evidence.window = *figures;
  evidence.load = {.completed = 40, .output_tokens = 4000};
  evidence.trace = TraceFigures{.num_steps = 20, .step_ms = 10.3};
  evidence.target_running = 16;
  return evidence;
}

std::vector<std::string> codes(const Evidence& evidence) {
  std::vector<std::string> out;
  for (const Reason& reason : judge(evidence, Limits())) out.push_back(reason.code);
  return out;
}

TEST(Verdict, ASteadySaturatedRunIsValid) { EXPECT_THAT(codes(good()), IsEmpty()); }

TEST(Verdict, RunsWithoutTokensAreInvalid) {
  Evidence evidence = good();
  evidence.load.output_tokens = 0;
  EXPECT_THAT(codes(evidence), ElementsAre("zero_output"));
}

TEST(Verdict, ShortAndFailedRequestsAreTwoReasons) {
  Evidence evidence = good();
  evidence.load.failed = 3;
  evidence.load.short_outputs = 1;
  evidence.load.first_error = "it ended";
  EXPECT_THAT(codes(evidence), ElementsAre("short_output", "failed_requests"));
}

TEST(Verdict, EachFaultOfTheWindowIsNamed) {
  const std::pair<const char*, void (*)(WindowFigures&)> cases[] = {
      {"failed_transfers", [](WindowFigures& w) { w.failed_transfers = 1; }},
      {"retractions", [](WindowFigures& w) { w.retractions = 1; }},
      {"kv_pool_exhausted", [](WindowFigures& w) { w.pool_peak = 0.99; }},
      {"unsteady", [](WindowFigures& w) { w.variation = 0.11; }},
      {"profiler_on", [](WindowFigures& w) { w.profiled = true; }},
      {"rank_imbalance", [](WindowFigures& w) { w.imbalance = 0.11; }},
      {"formulas_differ", [](WindowFigures& w) { w.per_rank_by_steps *= 1.021; }},
      {"not_saturated", [](WindowFigures& w) { w.running[1] = 14; }},
  };
  for (const auto& [code, spoil] : cases) {
    Evidence evidence = good();
    spoil(evidence.window);
    EXPECT_THAT(codes(evidence), ElementsAre(code));
  }
}

TEST(Verdict, ARankThatIsNotFullBecauseRequestsWaitForBlocksSaysSo) {
  Evidence evidence = good();
  evidence.window.starved = {3, 0};  // the first is full all the same
  EXPECT_THAT(codes(evidence), IsEmpty());
  evidence.window.running[0] = 4;
  EXPECT_THAT(codes(evidence), ElementsAre("kv_pool_exhausted", "not_saturated"));
}

TEST(Verdict, ATraceThatShowsOtherStepsIsAReason) {
  Evidence evidence = good();
  evidence.trace->step_ms = 13;
  EXPECT_THAT(codes(evidence), ElementsAre("trace_differs"));
  evidence.trace->num_steps = 0;
  EXPECT_THAT(codes(evidence), ElementsAre("empty_trace"));
}

TEST(Verdict, AFailedStageIsAReasonInItsOwnWords) {
  Evidence evidence = good();
  evidence.faults = {"rebalance: the planner gave up"};
  const std::vector<Reason> reasons = judge(evidence, Limits());
  ASSERT_EQ(reasons.size(), 1u);
  EXPECT_EQ(reasons[0].code, "stage_failed");
  EXPECT_EQ(reasons[0].detail, "rebalance: the planner gave up");
}

}  // namespace
}  // namespace tandem::workflow
