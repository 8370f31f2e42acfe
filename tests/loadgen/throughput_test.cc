#include "loadgen/throughput.h"

#include <gtest/gtest.h>

#include "loadgen/throughput/live.h"

namespace tandem::loadgen {
namespace {

PhaseMeasure measure_of(std::vector<std::pair<double, double>> batch_and_rate, double step_s) {
  PhaseMeasure measure;
  for (const auto& [batch, rate] : batch_and_rate) {
    measure.ranks.push_back({.source = "a.log",
                             .rank = int32_t(measure.ranks.size()),
                             .tokens_per_step = batch,
                             .tokens_per_s = rate,
                             .window_s = std::pair(100.0, 160.0)});
  }
  measure.step = StepTime{.seconds = step_s, .how = "given"};
  return measure;
}

bool has(const ThroughputReport& report, Doubt doubt) {
  for (const Finding& finding : report.findings) {
    if (finding.doubt == doubt) return true;
  }
  return false;
}

TEST(Throughput, TheUsersWorkedExample) {
  ThroughputConfig config;
  config.running_requests = {285, 256, 254, 265, 271, 227, 221, 269};
  config.step_ms = 65;
  config.num_gpus = 8;
  const auto reports = measure_throughput(config, {});
  ASSERT_TRUE(reports.has_value());
  ASSERT_EQ(reports->size(), 1u);
  EXPECT_NEAR(*reports->front().by_step, 2048 / 0.065 / 8, 1e-9);
  EXPECT_EQ(reports->front().verdict, Verdict::kUnchecked);
  EXPECT_NE(format_throughput(*reports).find("3,938 tok/s/GPU"), std::string::npos);
}

TEST(Throughput, FormulasThatAgreeMakeAValidFigure) {
  const ThroughputReport report = judge(measure_of({{100, 980}, {100, 980}}, 0.1), 4, 0.1);
  EXPECT_DOUBLE_EQ(*report.by_step, 500);
  EXPECT_DOUBLE_EQ(*report.by_counters, 490);
  EXPECT_NEAR(*report.difference, 500.0 / 490 - 1, 1e-12);
  EXPECT_EQ(report.verdict, Verdict::kValid);
}

TEST(Throughput, ADifferenceAboveTheToleranceIsAReason) {
  const PhaseMeasure measure = measure_of({{100, 800}}, 0.1);
  EXPECT_TRUE(has(judge(measure, 1, 0.1), Doubt::kFormulasDiffer));
  EXPECT_EQ(judge(measure, 1, 0.1).verdict, Verdict::kInvalid);
  EXPECT_EQ(judge(measure, 1, 0.3).verdict, Verdict::kValid);
}

TEST(Throughput, AStepTimeOutOfTheSameRatesChecksNothing) {
  PhaseMeasure measure = measure_of({{100, 1000}}, 0.1);
  measure.step->independent = false;
  EXPECT_EQ(judge(measure, 1, 0.1).verdict, Verdict::kUnchecked);
}

TEST(Throughput, MissingRanksUnequalWindowsAndNothingAreReasons) {
  PhaseMeasure measure = measure_of({{100, 1000}, {100, 1000}}, 0.1);
  measure.expected_ranks = 3;
  EXPECT_TRUE(has(judge(measure, 3, 0.1), Doubt::kRanksMissing));
  measure.expected_ranks = 2;
  EXPECT_EQ(judge(measure, 2, 0.1).verdict, Verdict::kValid);
  measure.ranks[1].window_s = std::pair(107.0, 160.0);
  EXPECT_TRUE(has(judge(measure, 2, 0.1), Doubt::kUnequalWindows)) << "7 s of 60";
  measure.ranks[1].window_s = std::pair(103.0, 162.0);
  EXPECT_FALSE(has(judge(measure, 2, 0.1), Doubt::kUnequalWindows)) << "within a tenth";
  measure.ranks[1].tokens_per_s.reset();
  EXPECT_TRUE(has(judge(measure, 2, 0.1), Doubt::kRanksMissing)) << "a rank without a rate";
  EXPECT_TRUE(has(judge(PhaseMeasure{}, 1, 0.1), Doubt::kNothingMeasured));
}

TEST(Throughput, ZeroAndAnIdleServerAreReasons) {
  const ThroughputReport zero = judge(measure_of({{0, 0}}, 0.1), 1, 0.1);
  EXPECT_TRUE(has(zero, Doubt::kZeroThroughput));
  EXPECT_FALSE(zero.difference.has_value());
  PhaseMeasure idle = measure_of({{100, 1000}}, 0.1);
  idle.step->busy_share = 0.4;
  EXPECT_TRUE(has(judge(idle, 1, 0.1), Doubt::kRanksWaited));
}

TEST(Throughput, TheExcerptOfALargeDeploymentIsReadWithItsStepTime) {
  ThroughputConfig config;
  config.logs = {std::string(TANDEM_SOURCE_DIR) + "/tests/data/throughput/gb200_decode_dp0.log"};
  config.step_ms = 77.7;
  auto reports = measure_throughput(config, {});
  ASSERT_TRUE(reports.has_value());
  EXPECT_NEAR(*reports->front().by_step, 13179, 1);
  EXPECT_NEAR(*reports->front().difference, 0.083, 0.001);
  EXPECT_EQ(reports->front().verdict, Verdict::kValid);
  config.num_gpus = 48;
  reports = measure_throughput(config, {});
  EXPECT_TRUE(has(reports->front(), Doubt::kRanksMissing)) << "one rank's log of 48";
  config.num_gpus.reset();
  config.phase = ServingPhase::kPrefill;
  reports = measure_throughput(config, {});
  EXPECT_TRUE(has(reports->front(), Doubt::kNothingMeasured)) << "it has no prefill line";
}

TEST(Throughput, FaultsOfTheConfigNameTheFlag) {
  const auto fault = [](const ThroughputConfig& config) { return config.validate().error().message; };
  ThroughputConfig config;
  EXPECT_NE(fault(config).find("--log"), std::string::npos);
  config.running_requests = {1};
  config.step_ms = 0;
  EXPECT_NE(fault(config).find("--step-ms"), std::string::npos);
  config.step_ms.reset();
  config.num_gpus = 0;
  EXPECT_NE(fault(config).find("--gpus"), std::string::npos);
  config.num_gpus.reset();
  config.logs = {"a.log"};
  EXPECT_NE(fault(config).find("--running-req"), std::string::npos);
}

std::string server_info(const char* mode, const std::vector<std::array<uint64_t, 6>>& ranks) {
  std::string states;
  for (const auto& c : ranks) {
    states += (states.empty() ? "" : ",") + std::string("{\"decode_steps\":") + std::to_string(c[0]) +
              ",\"generated_tokens\":" + std::to_string(c[1]) + ",\"decode_step_us\":" + std::to_string(c[2]) +
              ",\"prefill_steps\":" + std::to_string(c[3]) + ",\"prompt_tokens_computed\":" + std::to_string(c[4]) +
              ",\"prefill_step_us\":" + std::to_string(c[5]) + "}";
  }
  return std::string("{\"disaggregation_mode\":\"") + mode + "\",\"tp_size\":2,\"dp_size\":2,\"internal_states\":[" +
         states + "]}";
}

LiveSample sample(double at_s, const std::string& body) {
  LiveSample made;
  made.at = TimePoint(from_seconds(at_s));
  made.ranks = parse_server_counters(body, "http://a").value();
  return made;
}

TEST(LiveThroughput, TwoSamplesGiveBothFormulas) {
  const LiveSample first = sample(100, server_info("decode", {{10, 100, 5000, 0, 0, 0}, {10, 50, 5000, 0, 0, 0}}));
  // 10 s: 100 steps of 80 ms, 8 and 4 requests each.
  const LiveSample last =
      sample(110, server_info("decode", {{110, 900, 8005000, 0, 0, 0}, {110, 450, 8005000, 0, 0, 0}}));
  PhaseMeasure measure;
  add_live(first, last, measure);
  const ThroughputReport report = judge(measure, 2, 0.1);
  EXPECT_DOUBLE_EQ(report.tokens_per_step, 12);
  EXPECT_DOUBLE_EQ(*report.by_step, 12 / 0.08 / 2);
  EXPECT_DOUBLE_EQ(*report.by_counters, 1200 / 10.0 / 2);
  EXPECT_TRUE(has(report, Doubt::kRanksWaited)) << "steps ran in 8 of 10 s";
  PhaseMeasure prefill;
  prefill.phase = ServingPhase::kPrefill;
  add_live(first, last, prefill);
  EXPECT_TRUE(prefill.ranks.empty()) << "a decode server has no prefill figure";
}

TEST(LiveThroughput, ARestartIsFoundAndAnIdleRankCountsAsZero) {
  const LiveSample first = sample(0, server_info("decode", {{50, 10, 10, 0, 0, 0}, {50, 10, 10, 0, 0, 0}}));
  const LiveSample again = sample(10, server_info("decode", {{5, 10, 10, 0, 0, 0}, {50, 10, 10, 0, 0, 0}}));
  PhaseMeasure measure;
  add_live(first, again, measure);
  EXPECT_TRUE(has(judge(measure, 2, 0.1), Doubt::kUnequalWindows));
  const LiveSample later = sample(10, server_info("decode", {{150, 810, 9000010, 0, 0, 0}, {50, 10, 10, 0, 0, 0}}));
  PhaseMeasure one_busy;
  add_live(first, later, one_busy);
  EXPECT_DOUBLE_EQ(*one_busy.ranks[0].tokens_per_step, 8);
  EXPECT_DOUBLE_EQ(*one_busy.ranks[1].tokens_per_step, 0);
}

TEST(LiveThroughput, ARouterNamesItsServersAndAForeignServerIsRefused) {
  const std::string body = "{\"internal_states\":[],\"prefill\":[" + server_info("prefill", {{0, 0, 0, 1, 2, 3}}) +
                           "],\"decode\":[" + server_info("decode", {{1, 2, 3, 0, 0, 0}, {1, 2, 3, 0, 0, 0}}) + "]}";
  const auto ranks = parse_server_counters(body, "http://r");
  ASSERT_TRUE(ranks.has_value()) << ranks.error().message;
  ASSERT_EQ(ranks->size(), 3u);
  EXPECT_EQ((*ranks)[0].main_phase, ServingPhase::kPrefill);
  EXPECT_EQ((*ranks)[2].source, "http://r decode[0]");
  EXPECT_EQ((*ranks)[2].rank, 1);
  const auto foreign = parse_server_counters("{\"internal_states\":[{\"last_gen_throughput\":1.0}]}", "http://s");
  ASSERT_FALSE(foreign.has_value());
  EXPECT_NE(foreign.error().message.find("http://s: expected a counter decode_steps"), std::string::npos);
}

}  // namespace
}  // namespace tandem::loadgen
