#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "loadgen/throughput/log_reader.h"

namespace tandem::loadgen {
namespace {

const std::string kFolder = std::string(TANDEM_SOURCE_DIR) + "/tests/data/throughput/";

LogSummary read_text(const std::string& text, LogWindow window = {}) {
  LogReader reader("test.log", window);
  reader.feed(text);
  return reader.finish();
}

std::string decode_line(const char* scope, const char* clock, int running, double rate) {
  return std::string("[2025-11-22 ") + clock + scope + "] Decode batch, #running-req: " + std::to_string(running) +
         ", #token: 64, token usage: 0.00, cuda graph: True, gen throughput (token/s): " + std::to_string(rate) +
         ", #queue-req: 0, \n";
}

std::string prefill_line(const char* clock, int tokens, double rate) {
  return std::string("[2025-11-22 ") + clock +
         " DP0 TP0] Prefill batch, #new-seq: 4, #new-token: " + std::to_string(tokens) +
         ", #cached-token: 0, token usage: 0.00, #running-req: 0, #queue-req: 3, #prealloc-req: 0, #inflight-req: 1, " +
         "input throughput (token/s): " + std::to_string(rate) + ", \n";
}

PhaseMeasure measured(const LogSummary& log, ServingPhase phase, double share = kSteadyShare) {
  PhaseMeasure measure;
  measure.phase = phase;
  add_log(log, {}, share, measure);
  return measure;
}

TEST(LogLine, BothFormsOfTheDecodeLineAreRead) {
  for (const char mark : {',', '.'}) {
    const std::string text = std::string("[2025-10-15 18:07:24 DP3 TP24 EP24] Decode batch") + mark +
                             " #running-req: 285, #token: 328960, token usage: 0.51, cuda graph: True, gen throughput "
                             "(token/s): 3344.60, #queue-req: 0,";
    const auto line = parse_log_line(text);
    ASSERT_TRUE(line.has_value());
    EXPECT_EQ(line->event, LogEvent::kDecodeBatch);
    EXPECT_EQ(line->dp_rank, 3);
    EXPECT_EQ(line->tp_rank, 24);
    EXPECT_EQ(line->running, 285);
    EXPECT_DOUBLE_EQ(*line->gen_throughput, 3344.60);
    EXPECT_DOUBLE_EQ(*line->stamp_s, 1760551644.0);
  }
}

TEST(LogLine, MillisecondsAForewordAndNoRankAreTaken) {
  const auto line = parse_log_line(
      "node-7: [2025-10-15 18:07:24.250] Decode batch, #running-req: 8, accept len: 2.50, accept rate: 0.50, gen "
      "throughput (token/s): 1.0, ");
  ASSERT_TRUE(line.has_value());
  EXPECT_DOUBLE_EQ(*line->stamp_s, 1760551644.25);
  EXPECT_EQ(line->dp_rank, -1);
  EXPECT_DOUBLE_EQ(line->accept_length, 2.5);
}

TEST(LogLine, ABatchLineWithoutItsNumbersSaysWhatWasExpected) {
  const auto line = parse_log_line("[2025-10-15 18:07:24 DP0] Decode batch, #running-req: many, ");
  ASSERT_FALSE(line.has_value());
  EXPECT_NE(line.error().message.find("#running-req: N"), std::string::npos);
  EXPECT_FALSE(parse_log_line("[2025-10-15 18:07:24] Prefill batch, #new-seq: 1, ").has_value());
}

TEST(LogLine, OtherTextIsNoEvent) {
  EXPECT_EQ(parse_log_line("they said: Decode batch, #running-req: 1")->event, LogEvent::kOther);
  EXPECT_EQ(parse_log_line("")->event, LogEvent::kOther);
  EXPECT_EQ(parse_log_line("[2025-99-15 18:07:24] x")->stamp_s, std::nullopt);
}

TEST(LogReader, TheExcerptOfALargeDeploymentGivesItsSteadyBatchAndRate) {
  const auto log = read_log(kFolder + "gb200_decode_dp0.log", {});
  ASSERT_TRUE(log.has_value()) << log.error().message;
  const PhaseMeasure measure = measured(*log, ServingPhase::kDecode);
  ASSERT_EQ(measure.ranks.size(), 1u);
  // The batch while the profiler ran; warm-up lines of one request are no part of it.
  EXPECT_DOUBLE_EQ(*measure.ranks[0].tokens_per_step, 1024);
  // 1024 tokens each at 12112.66, 12241.95 and 12156.81 tokens/s; neither the line behind the sleep (0.89) nor those of
  // the profile count.
  EXPECT_NEAR(*measure.ranks[0].tokens_per_s, 3 / (1 / 12112.66 + 1 / 12241.95 + 1 / 12156.81), 1e-6);
  EXPECT_EQ(log->ranks.at(0).in_profile, 4u);
  EXPECT_EQ(log->ranks.at(0).after_sleep, 1u);
  ASSERT_TRUE(measure.step.has_value());
  EXPECT_NEAR(measure.step->seconds, 0.0841, 1e-4);
  EXPECT_FALSE(measure.step->independent);
}

TEST(LogReader, TheOctoberExcerptGivesABatchButNoRate) {
  const auto log = read_log(kFolder + "decode_october_dp0.log", {});
  ASSERT_TRUE(log.has_value()) << log.error().message;
  const PhaseMeasure measure = measured(*log, ServingPhase::kDecode);
  ASSERT_EQ(measure.ranks.size(), 1u);
  EXPECT_DOUBLE_EQ(*measure.ranks[0].tokens_per_step, 285);
  EXPECT_FALSE(measure.ranks[0].tokens_per_s.has_value()) << "its only line was written while a profiler ran";
}

TEST(LogReader, ATraceOfAnotherProfileIsFound) {
  const auto log = read_log(kFolder + "decode_october_dp0.log", {});
  PhaseMeasure right, wrong;
  add_log(*log, {"out/1760576844.4826152-TP-0.trace.json.gz"}, kSteadyShare, right);
  EXPECT_TRUE(right.findings.empty());
  add_log(*log, {"out/1763882692.8351896-TP-0.trace.json.gz"}, kSteadyShare, wrong);
  ASSERT_EQ(wrong.findings.size(), 1u);
  EXPECT_EQ(wrong.findings[0].doubt, Doubt::kAnotherProfile);
}

TEST(LogReader, APieceMayEndAnywhere) {
  std::ifstream file(kFolder + "gb200_decode_dp0.log");
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  LogReader reader("test.log", {});
  for (const char c : text) reader.feed(std::string_view(&c, 1));
  const LogSummary log = reader.finish();
  EXPECT_EQ(log.lines, 27u);
  EXPECT_EQ(log.garbled, 0u);
  EXPECT_DOUBLE_EQ(*measured(log, ServingPhase::kDecode).ranks[0].tokens_per_step, 1024);
}

TEST(LogReader, WhatCameBeforeTheReadyLineIsWarmUp) {
  const std::string text = decode_line(" DP0", "10:00:00", 900, 10) +
                           "[2025-11-22 10:00:01] The server is fired up and ready to roll!\n" +
                           decode_line(" DP0", "10:00:02", 8, 100);
  const LogSummary log = read_text(text);
  EXPECT_EQ(log.before_ready, 1u);
  EXPECT_DOUBLE_EQ(*measured(log, ServingPhase::kDecode).ranks[0].tokens_per_step, 8);
}

TEST(LogReader, ASleepDisturbsItsOwnRankOnly) {
  const std::string text = "[2025-11-22 10:00:00 DP0] Scheduler.run_batch sleep 180.0s\n" +
                           decode_line(" DP0", "10:03:00", 8, 0.1) + decode_line(" DP1", "10:03:00", 8, 50) +
                           decode_line(" DP0", "10:03:01", 8, 50);
  const PhaseMeasure measure = measured(read_text(text), ServingPhase::kDecode);
  ASSERT_EQ(measure.ranks.size(), 2u);
  EXPECT_DOUBLE_EQ(*measure.ranks[0].tokens_per_s, 50);
  EXPECT_DOUBLE_EQ(*measure.ranks[1].tokens_per_s, 50);
}

TEST(LogReader, TheRateBehindAProfileIsLeftOut) {
  const std::string text =
      decode_line(" DP0", "10:00:00", 8, 80) +
      "[2025-11-22 10:00:01 DP0] Profiling starts. Traces will be saved to: d (with profile id: 7.5)\n" +
      decode_line(" DP0", "10:00:02", 9, 20) + "[2025-11-22 10:00:03 DP0] Profiling done. Traces\n" +
      decode_line(" DP0", "10:00:04", 8, 1) + decode_line(" DP0", "10:00:05", 8, 80);
  const PhaseMeasure measure = measured(read_text(text), ServingPhase::kDecode);
  EXPECT_DOUBLE_EQ(*measure.ranks[0].tokens_per_s, 80);
  EXPECT_DOUBLE_EQ(*measure.ranks[0].tokens_per_step, 9) << "the batch of the profile";
}

TEST(LogReader, WindowsByStampClockAndSecondsTakeTheSameLines) {
  std::string text;
  for (int second = 10; second < 20; ++second) {
    text += decode_line(" DP0", ("10:00:" + std::to_string(second)).c_str(), second, 100);
  }
  for (const auto& [begin, end] : {std::pair<std::string, std::string>{"2025-11-22 10:00:12", "2025-11-22 10:00:13"},
                                   {"10:00:12", "10:00:13"},
                                   {"2", "3"}}) {
    const auto window = LogWindow::parse(begin, end);
    ASSERT_TRUE(window.has_value());
    const PhaseMeasure measure = measured(read_text(text, *window), ServingPhase::kDecode, 0);
    ASSERT_EQ(measure.ranks.size(), 1u) << begin;
    EXPECT_DOUBLE_EQ(*measure.ranks[0].tokens_per_step, 12.5) << begin;
  }
  EXPECT_FALSE(LogWindow::parse("noon", "").has_value());
}

TEST(LogReader, PrefillRatesBelongToTheBatchBefore) {
  // 1,000 tokens until the second line: 0.5 s; 1,000 until the third: 0.25 s.
  const std::string text =
      prefill_line("10:00:00", 1000, 0) + prefill_line("10:00:01", 1000, 2000) + prefill_line("10:00:01", 1000, 4000);
  const PhaseMeasure measure = measured(read_text(text), ServingPhase::kPrefill);
  ASSERT_EQ(measure.ranks.size(), 1u);
  EXPECT_DOUBLE_EQ(*measure.ranks[0].tokens_per_step, 1000);
  EXPECT_DOUBLE_EQ(*measure.ranks[0].tokens_per_s, 2000 / 0.75);
  EXPECT_DOUBLE_EQ(measure.step->seconds, 0.375);
}

TEST(LogReader, GarbledLinesAreCountedAndAFileOfNothingElseIsRefused) {
  const LogSummary log =
      read_text("[2025-11-22 10:00:00] Decode batch, #run[2025\n" + decode_line("", "10:00:01", 4, 9));
  EXPECT_EQ(log.garbled, 1u);
  EXPECT_NE(log.first_garbled.find("line 1: expected"), std::string::npos);
  EXPECT_DOUBLE_EQ(*measured(log, ServingPhase::kDecode).ranks[0].tokens_per_step, 4);
}

TEST(LogReader, AFileThatIsNotThereIsNamed) {
  const auto log = read_log("no/such.log", {});
  ASSERT_FALSE(log.has_value());
  EXPECT_NE(log.error().message.find("no/such.log: cannot be opened"), std::string::npos);
}

}  // namespace
}  // namespace tandem::loadgen
