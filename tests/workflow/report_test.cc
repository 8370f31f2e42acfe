#include "workflow/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/check.h"
#include "tests/workflow/made_samples.h"
#include "workflow/trace_figures.h"

namespace tandem::workflow {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

ReproduceReport made_report() {
  ReproduceReport report;
  report.version = "1.2.3";
  HalfReport half;
  half.name = "decode-bound";
  half.samples = steady_decode({16, 16}, 100.0, 21);
  half.stages = {{"measure", 0, 10, "fine", false}};
  Measurement measurement;
  auto figures = measure(half.samples, Role::kDecode);
  CHECK(figures.has_value());
  measurement.evidence.window = *figures;
  measurement.evidence.load.completed = 10;
  measurement.evidence.load.output_tokens = 100;
  measurement.evidence.trace = TraceFigures{5, 101};
  measurement.breakdown = {{"gemm <a>", 5, 60}, {"everything else", 0, 41}};
  measurement.experts = ExpertFigures{2, 2, {1, 3, 2, 2}, 0.75, {}};
  measurement.itls_ms = {100, 101, 99};
  measurement.reasons = judge(measurement.evidence, Limits());
  half.before = std::move(measurement);
  report.halves.push_back(std::move(half));
  return report;
}

TEST(Report, AGoodRunIsValidInBothForms) {
  const ReproduceReport report = made_report();
  EXPECT_TRUE(report.valid());
  auto parsed = json::Document::parse(json::dump(report_json(report)), "report");
  ASSERT_TRUE(parsed.has_value());
  std::string_view verdict;
  ASSERT_FALSE(parsed->root()["verdict"].get(verdict));
  EXPECT_EQ(verdict, "valid");
  double rate = 0;
  ASSERT_FALSE(parsed->root()["halves"].at(0)["before"]["tokens_per_s_per_gpu_by_counters"].get(rate));
  EXPECT_NEAR(rate, 160, 1e-6);
  const std::string html = report_html(report);
  EXPECT_THAT(html, HasSubstr("<b>valid</b>"));
  EXPECT_THAT(html, HasSubstr("gemm &lt;a&gt;"));
  EXPECT_THAT(html, Not(HasSubstr("nan")));
  EXPECT_THAT(html, Not(HasSubstr("<script")));
}

TEST(Report, ReasonsNameTheHalfAndTheMeasurement) {
  ReproduceReport report = made_report();
  report.halves[0].after = report.halves[0].before;
  report.halves[0].after->reasons = {{"unsteady", "it shook"}};
  ASSERT_EQ(report.reasons().size(), 1u);
  EXPECT_EQ(report.reasons()[0].detail, "decode-bound, rebalanced: it shook");
  EXPECT_THAT(report_html(report), HasSubstr("<b>invalid</b>"));
}

TEST(Report, AHalfWithoutAWindowSaysWhichStageFailed) {
  ReproduceReport report = made_report();
  report.halves[0].before.reset();
  report.halves[0].stages = {{"saturate", 0, 60, "a rank runs only 1 of 16 requests", true}};
  const std::vector<Reason> reasons = report.reasons();
  ASSERT_EQ(reasons.size(), 2u);
  EXPECT_EQ(reasons[0].code, "not_measured");
  EXPECT_THAT(reasons[1].detail, HasSubstr("saturate: a rank runs only 1 of 16"));
}

TEST(Report, NothingMeasuredIsInvalid) { EXPECT_FALSE(ReproduceReport().valid()); }

profile::TraceEvent event(const char* name, const char* category, int64_t pid, double begin_us, double duration_us) {
  profile::TraceEvent made;
  made.phase = 'X';
  made.name = name;
  made.category = category;
  made.pid = pid;
  made.begin_us = begin_us;
  made.duration_us = duration_us;
  if (made.name == "step") made.texts.emplace_back("kind", pid == 9 ? "extend" : "decode");
  return made;
}

TEST(TraceFigures, StepsCountFromBeginToBeginAndPartsOnlyWithinThem) {
  profile::Trace trace;
  for (int i = 0; i < 3; ++i) {
    const double at = i * 1000.0;
    trace.events.push_back(event("step", "step", 1, at, 900));
    trace.events.push_back(event("gemm", "cpu_op", 1, at + 10, 300));
    trace.events.push_back(event("gemm", "cpu_op", 1, at + 400, 300));
    trace.events.push_back(event("gemm", "cpu_op", 1, at + 950, 30));  // between two steps
    trace.events.push_back(event("step", "step", 2, at, 900));         // another rank
    trace.events.push_back(event("gemm", "cpu_op", 2, at, 500));
  }
  trace.events.push_back(event("step", "step", 9, 0, 5));
  const TraceFigures figures = trace_figures(trace, Role::kDecode);
  EXPECT_EQ(figures.num_steps, 3);
  EXPECT_DOUBLE_EQ(figures.step_ms, 1.0);
  const std::vector<StepPart> parts = step_breakdown(trace, Role::kDecode);
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_EQ(parts[0].name, "gemm");
  EXPECT_EQ(parts[0].count, 6);
  EXPECT_NEAR(parts[0].ms_per_step, 0.6, 1e-9);
  EXPECT_EQ(parts[1].name, "everything else");
  EXPECT_NEAR(parts[1].ms_per_step, 0.3, 1e-9);
  EXPECT_EQ(trace_figures(trace, Role::kPrefill).num_steps, 1);
}

}  // namespace
}  // namespace tandem::workflow
