#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include <filesystem>
#include <fstream>

#include "loadgen/throughput/trace_reader.h"

namespace tandem::loadgen {
namespace {

Result<TraceSteps> read_text(const std::string& text, size_t piece = SIZE_MAX,
                             const std::string& name = "7-TP-0.trace.json") {
  TraceReader reader(name);
  for (size_t at = 0; at < text.size(); at += std::min(piece, text.size() - at)) {
    RETURN_IF_ERROR(reader.feed(std::string_view(text).substr(at, piece)));
  }
  return reader.finish();
}

std::string event(const std::string& name, const char* category, int64_t begin_us, int64_t duration_us, int tid = 1) {
  return fmt::format(
      R"({{"ph": "X", "cat": "{}", "name": "{}", "pid": 4711, "tid": {}, "ts": {}.125, "dur": {}, )"
      R"("args": {{"External id": 1}}}})",
      category, name, tid, begin_us, duration_us);
}

// As torch's profiler writes them: other members in front, metadata events, events of many kinds out of order.
std::string torch_trace(const std::string& events) {
  return R"({"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "a \"GPU\" [x] {y"}], "traceEvents": [)"
         R"({"ph": "M", "name": "process_name", "pid": 4711, "args": {"name": "python"}}, )" +
         events + R"(], "traceName": "t.json"})";
}

std::string own_step(int64_t step, const char* kind, int64_t begin_us, int64_t duration_us, int tokens) {
  return fmt::format(
      R"({{"ph":"X","name":"step","pid":1,"tid":2,"ts":{},"dur":{},)"
      R"("args":{{"step":{},"kind":"{}","num_tokens":{},"num_sequences":{}}}}})",
      begin_us, duration_us, step, kind, tokens, tokens);
}

TEST(TraceReader, GraphLaunchesOfTheBusiestThreadGiveTheStep) {
  std::string events = event("gemm [\\\"x\\\"]", "kernel", 5, 1);
  for (const int64_t at : {0, 65000, 130000, 260000}) events += ", " + event("cudaGraphLaunch", "cuda_runtime", at, 90);
  events += ", " + event("cudaGraphLaunch", "cuda_runtime", 10, 90, 7);
  const auto steps = read_text(torch_trace(events));
  ASSERT_TRUE(steps.has_value()) << steps.error().message;
  EXPECT_EQ(steps->mark, StepMark::kCudaGraphLaunch);
  const auto& decode = steps->phases[size_t(ServingPhase::kDecode)];
  ASSERT_TRUE(decode.has_value()) << "graphs are decode steps";
  EXPECT_EQ(decode->steps, 4u);
  EXPECT_NEAR(decode->step_s, 0.065, 1e-9) << "the median of 65, 65 and 130 ms";
}

TEST(TraceReader, AnnotationsAreBetterThanSpansAndThoseThanLaunches) {
  const std::string launches =
      event("cudaGraphLaunch", "cuda_runtime", 0, 1) + "," + event("cudaGraphLaunch", "cuda_runtime", 50000, 1);
  const std::string spans = launches + "," +
                            event("sglang/srt/managers/scheduler.py(1601): run_batch", "python_function", 0, 9) + "," +
                            event("sglang/srt/managers/scheduler.py(1601): run_batch", "python_function", 60000, 9);
  auto steps = read_text(torch_trace(spans));
  ASSERT_TRUE(steps.has_value());
  EXPECT_EQ(steps->mark, StepMark::kRunBatch);
  ASSERT_TRUE(steps->unknown.has_value());
  EXPECT_NEAR(steps->unknown->step_s, 0.060, 1e-9);
  steps = read_text(torch_trace(spans + "," + event("ProfilerStep#3", "user_annotation", 0, 70000)));
  ASSERT_TRUE(steps.has_value());
  EXPECT_EQ(steps->mark, StepMark::kProfilerStep);
  EXPECT_NEAR(steps->unknown->step_s, 0.070, 1e-9);
}

TEST(TraceReader, TheNameSaysPhaseRankAndProfile) {
  const TraceName name = parse_trace_name("out-1/bs-8-1763882692.83-TP-12-DP-3-EP-12-EXTEND.trace.json.gz");
  EXPECT_EQ(name.profile_id, "1763882692.83");
  EXPECT_EQ(name.rank, 3);
  EXPECT_EQ(name.stage, ServingPhase::kPrefill);
  EXPECT_EQ(parse_trace_name("7.5-TP-2.trace.json.gz").rank, 2);
  EXPECT_EQ(parse_trace_name("anything.json").profile_id, "");
}

TEST(TraceReader, OurStepsGiveBatchPeriodAndRate) {
  // 10 ms of work every 20 ms; an idle step and one whose predecessor's number is not its neighbour's.
  const std::string text = "{\"traceEvents\":[" + own_step(1, "decode", 0, 10000, 4) + "," +
                           own_step(2, "decode", 20000, 10000, 6) + "," + own_step(3, "idle", 40000, 5000, 0) + "," +
                           own_step(9, "decode", 90000, 10000, 5) + "," + own_step(10, "extend", 100000, 30000, 512) +
                           "]}";
  for (const size_t piece : {size_t(1), size_t(7), SIZE_MAX}) {
    const auto steps = read_text(text, piece);
    ASSERT_TRUE(steps.has_value()) << steps.error().message;
    const auto& decode = steps->phases[size_t(ServingPhase::kDecode)];
    ASSERT_TRUE(decode.has_value());
    EXPECT_EQ(decode->steps, 3u);
    EXPECT_NEAR(decode->step_s, 0.020, 1e-9) << "the median of 20, 20 and 10 ms";
    EXPECT_NEAR(*decode->tokens_per_step, 5, 1e-9);
    EXPECT_NEAR(*decode->tokens_per_s, 15 / 0.1, 1e-6);
    const auto& prefill = steps->phases[size_t(ServingPhase::kPrefill)];
    ASSERT_TRUE(prefill.has_value());
    EXPECT_NEAR(prefill->step_s, 0.030, 1e-9) << "one step: its duration";
    EXPECT_NEAR(*prefill->tokens_per_step, 512, 1e-9);
  }
}

TEST(TraceReader, ABareArrayMayLackItsEnd) {
  EXPECT_TRUE(read_text("[" + own_step(1, "decode", 0, 10, 4)).has_value());
}

TEST(TraceReader, FaultsSayWhatWasExpected) {
  const auto message = [](const std::string& text) { return read_text(text).error().message; };
  EXPECT_NE(message("hello").find("expected a Chrome trace"), std::string::npos);
  EXPECT_NE(message("").find("expected a Chrome trace"), std::string::npos);
  EXPECT_NE(message("{\"a\": 1}").find("traceEvents"), std::string::npos);
  EXPECT_NE(message("{\"traceEvents\": [{\"ph\": \"X\"").find("it is cut"), std::string::npos);
  EXPECT_NE(message("{\"traceEvents\": [{\"ph\": X}]}").find("event 1: expected a JSON object"), std::string::npos);
  EXPECT_NE(message("{\"traceEvents\": []}").find("no steps: expected"), std::string::npos);
  EXPECT_NE(message("{\"traceEvents\": []} x").find("nothing behind"), std::string::npos);
}

TEST(TraceReader, GzippedFilesAreReadAndCutOnesRefused) {
  const auto folder = std::filesystem::temp_directory_path() / ("tandem-trace-" + std::to_string(getpid()));
  std::filesystem::create_directory(folder);
  const std::string path = folder / "7-TP-0.trace.json.gz";
  std::string text = "{\"traceEvents\":[" + own_step(1, "decode", 0, 10, 4);
  for (int i = 2; i < 20000; ++i) text += "," + own_step(i, "decode", i * 100, i % 97, i % 89);
  text += "]}";
  gzFile file = gzopen(path.c_str(), "wb");
  ASSERT_EQ(gzwrite(file, text.data(), unsigned(text.size())), int(text.size()));
  gzclose(file);
  const auto whole = read_trace(path);
  ASSERT_TRUE(whole.has_value()) << whole.error().message;
  EXPECT_EQ(whole->events, 19999u);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
  const auto cut = read_trace(path);
  ASSERT_FALSE(cut.has_value());
  EXPECT_NE(cut.error().message.find(path + ": expected a whole gzip stream"), std::string::npos)
      << cut.error().message;
  std::filesystem::remove_all(folder);
}

TEST(TraceReader, RanksAreJoinedByTheirMedian) {
  std::vector<TraceSteps> traces(3);
  for (size_t i = 0; i < traces.size(); ++i) {
    traces[i].rank = int32_t(i);
    traces[i].phases[0] = TracePhase{.steps = 4, .step_s = 0.01 * double(i + 1), .tokens_per_step = 8};
  }
  PhaseMeasure measure;
  add_traces(traces, false, measure);
  ASSERT_TRUE(measure.step.has_value());
  EXPECT_NEAR(measure.step->seconds, 0.02, 1e-12);
  EXPECT_EQ(measure.ranks.size(), 3u);
  EXPECT_EQ(measure.notes.size(), 1u) << "the ranks differ";
}

}  // namespace
}  // namespace tandem::loadgen
