// Spans and their ring.
#include "profile/span.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

namespace tandem::profile {
namespace {

std::vector<std::string> names_of(const SpanBuffer& buffer) {
  std::vector<std::string> names;
  for (size_t i = 0; i < buffer.size(); ++i) names.emplace_back(buffer[i].name);
  return names;
}

TEST(Span, NothingIsKeptWhileOff) {
  ManualClock clock;
  Recorder recorder(clock);
  { ScopedSpan span(&recorder, Track::kScheduler, "plan"); }
  { ScopedSpan span(nullptr, Track::kScheduler, "plan"); }
  {
    OpSpan op(&recorder, "linear");
    EXPECT_FALSE(op);
  }
  recorder.count("running", "running", {1});
  recorder.start(SpanBuffer(4), true);
  EXPECT_EQ(recorder.stop().size(), 0u);
}

TEST(Span, BlocksAndOperatorsSayWhenWhereAndWhat) {
  ManualClock clock;
  Recorder recorder(clock);
  recorder.start(SpanBuffer(8), true);
  recorder.enter(3, 1);
  {
    ScopedSpan outer(&recorder, Track::kLayer, "layer");
    clock.advance(std::chrono::nanoseconds(10));
    OpSpan op(&recorder, "linear");
    ASSERT_TRUE(op);
    op.work({4, 512, 256, 7, 9}, 1024, 99);
    clock.advance(std::chrono::nanoseconds(5));
  }
  const SpanBuffer spans = recorder.stop();
  ASSERT_EQ(names_of(spans), (std::vector<std::string>{"linear", "layer"}));
  EXPECT_EQ(spans[0].begin_ns, 10);
  EXPECT_EQ(spans[0].end_ns, 15);
  EXPECT_EQ(spans[0].track, Track::kOp);
  EXPECT_EQ(spans[0].layer, 3);
  EXPECT_EQ(spans[0].batch, 1);
  EXPECT_EQ(spans[0].num_dims, 4);  // a fifth has no room
  EXPECT_EQ(spans[0].dims[1], 512);
  EXPECT_EQ(spans[0].values[0], 1024);
  EXPECT_EQ(spans[1].begin_ns, 0);
  EXPECT_EQ(spans[1].end_ns, 15);
}

TEST(Span, OperatorsAreLeftOutWhereTheyAreNotWanted) {
  ManualClock clock;
  Recorder recorder(clock);
  recorder.start(SpanBuffer(8), false);
  { OpSpan op(&recorder, "linear"); }
  { ScopedSpan span(&recorder, Track::kLayer, "layer"); }
  EXPECT_EQ(names_of(recorder.stop()), (std::vector<std::string>{"layer"}));
}

TEST(Span, WhatIsPausedIsLeftOut) {
  ManualClock clock;
  Recorder recorder(clock);
  recorder.start(SpanBuffer(8), true);
  { ScopedSpan span(&recorder, Track::kStep, "a"); }
  recorder.resume(false);
  { ScopedSpan span(&recorder, Track::kStep, "b"); }
  recorder.resume(true);
  { ScopedSpan span(&recorder, Track::kStep, "c"); }
  EXPECT_EQ(names_of(recorder.stop()), (std::vector<std::string>{"a", "c"}));
}

TEST(Span, TheRingKeepsTheNewestAndCountsTheRest) {
  ManualClock clock;
  Recorder recorder(clock);
  recorder.start(SpanBuffer(4), true);
  const char* const names[] = {"0", "1", "2", "3", "4", "5"};
  for (const char* name : names) ScopedSpan(&recorder, Track::kStep, name);
  const SpanBuffer spans = recorder.stop();
  EXPECT_EQ(names_of(spans), (std::vector<std::string>{"2", "3", "4", "5"}));
  EXPECT_EQ(spans.dropped(), 2u);
}

TEST(Span, ExpertLoadIsMeanOverMaxOfTheSlotsThatHadRows) {
  ManualClock clock;
  Recorder recorder(clock);
  recorder.start(SpanBuffer(4), true);
  const std::vector<int32_t> even{0, 2, 4}, uneven{0, 3, 4}, none{0, 0, 0};
  recorder.add_expert_rows(even);
  recorder.add_expert_rows(uneven);
  recorder.add_expert_rows(none);
  const Recorder::ExpertLoad load = recorder.take_expert_load();
  EXPECT_EQ(load.pairs, 8);
  EXPECT_DOUBLE_EQ(load.balance(), (1.0 + 2.0 / 3) / 2);
  EXPECT_EQ(recorder.take_expert_load().pairs, 0);
}

TEST(Span, ASharedRecorderIsStartedAndEmptiedByAnotherThread) {
  const SystemClock clock;
  SharedRecorder recorder(clock);
  std::jthread writer([&](std::stop_token stop) {
    while (!stop.stop_requested()) {
      if (!recorder.on()) continue;
      Span span{};
      span.name = "read";
      span.begin_ns = recorder.now_ns();
      recorder.push(span);
    }
  });
  for (int round = 0; round < 3; ++round) {
    recorder.start(SpanBuffer(64));
    SpanBuffer spans;
    while (spans.size() == 0) {
      std::this_thread::yield();
      spans = recorder.stop();
      if (spans.size() == 0) recorder.start(SpanBuffer(64));
    }
    EXPECT_STREQ(spans[0].name, "read");
  }
}

}  // namespace
}  // namespace tandem::profile
