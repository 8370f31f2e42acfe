// Two ranks that profile: both record the same steps, the answers say what became of an order, and the halves of a
// split step lie between each other's dispatch and wait.
#include <gtest/gtest.h>

#include <filesystem>
#include <future>
#include <set>

#include "profile/trace_reader.h"
#include "tests/engine/rank_group_rig.h"

namespace tandem::testing {
namespace {

using profile::Trace;
using profile::TraceEvent;

class Profiled {
 public:
  explicit Profiled(bool two_batches = false) : ranks(options_of(two_batches)) {
    std::string name = std::filesystem::temp_directory_path() / "tandem-profile-XXXXXX";
    CHECK(mkdtemp(name.data()) != nullptr);
    directory = name;
  }
  ~Profiled() { std::filesystem::remove_all(directory); }

  // Requests that decode for a while: their rows are the same however often this is called.
  void load(uint64_t first_id, int32_t num_tokens) {
    for (uint64_t id = first_id; id < first_id + 8; ++id) {
      ranks.group.group.submit(engine::SubmitCommand{greedy_request(id, std::vector<int32_t>(20, 7), num_tokens)});
    }
  }

  Status order(engine::ProfileCommand::Kind kind, api::ProfileCall call = {}) {
    std::promise<Status> promise;
    engine::ProfileCommand command;
    command.kind = kind;
    command.call = std::move(call);
    command.done = [&](const Status& status) { promise.set_value(status); };
    EXPECT_EQ(ranks.group.group.submit(std::move(command)), PushResult::kPushed);
    return promise.get_future().get();
  }
  Status start(api::ProfileCall call) {
    if (call.output_dir.empty()) call.output_dir = directory;
    return order(engine::ProfileCommand::Kind::kStart, std::move(call));
  }
  Status stop() { return order(engine::ProfileCommand::Kind::kStop); }

  // Waits for a rank's file, a minute at most.
  Trace trace(const std::string& id, int32_t rank, const std::string& stage = "") {
    const std::string path = fmt::format("{}/{}-TP-{}-DP-{}-EP-{}{}.trace.json.gz", directory, id, rank, rank, rank,
                                         stage.empty() ? "" : "-" + stage);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!std::filesystem::exists(path) && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    auto read = profile::read_trace(path);
    EXPECT_TRUE(read.has_value()) << read.error().message;
    return read ? std::move(*read) : Trace{};
  }

  std::string directory;
  RankGroup ranks;

 private:
  static RankGroup::Options options_of(bool two_batches) {
    RankGroup::Options options;
    options.num_ranks = 2;
    options.slots_per_rank = 16;
    options.two_batches = two_batches;
    return options;
  }
};

std::vector<int64_t> steps_of(const Trace& trace) {
  std::vector<int64_t> steps;
  for (const TraceEvent& event : trace.events) {
    if (event.phase == 'X' && event.name == "step") steps.push_back(int64_t(event.number("step")));
  }
  return steps;
}

api::ProfileCall steps(const char* id, int64_t num_steps) {
  api::ProfileCall call;
  call.profile_id = id;
  call.num_steps = num_steps;
  return call;
}

TEST(Profile, RanksRecordTheSameStepsAsOftenAsAsked) {
  Profiled profiled;
  profiled.load(0, 450);
  for (const char* id : {"1.5", "2.5"}) {
    ASSERT_TRUE(profiled.start(steps(id, 5)).has_value());
    const Trace first = profiled.trace(id, 0), second = profiled.trace(id, 1);
    ASSERT_EQ(steps_of(first).size(), 5u);
    EXPECT_EQ(steps_of(first), steps_of(second));
    EXPECT_EQ(steps_of(first).back() - steps_of(first).front(), 4);
  }
  EXPECT_TRUE(profiled.ranks.wait_for(8));
}

TEST(Profile, IdleRanksRecordTheirIdleSteps) {
  Profiled profiled;
  ASSERT_TRUE(profiled.start(steps("1", 4)).has_value());
  api::EngineRequest only = greedy_request(1, std::vector<int32_t>(20, 7), 30);
  only.data_parallel_rank = 1;
  profiled.ranks.group.group.submit(engine::SubmitCommand{only});
  const Trace idle = profiled.trace("1", 0), busy = profiled.trace("1", 1);
  EXPECT_EQ(steps_of(idle), steps_of(busy));
  for (const TraceEvent& event : idle.events) {
    if (event.name != "step" || event.phase != 'X') continue;
    EXPECT_EQ(event.text("kind"), "idle");
  }
  EXPECT_TRUE(profiled.ranks.wait_for(1));
}

TEST(Profile, AnOrderThatCannotBeFollowedIsRefusedAndChangesNothing) {
  Profiled profiled;
  EXPECT_FALSE(profiled.stop().has_value());
  api::ProfileCall nowhere = steps("1", 1);
  nowhere.output_dir = "/dev/null/below";
  const Status refused = profiled.start(nowhere);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidInput);
  EXPECT_NE(refused.error().message.find("/dev/null/below"), std::string::npos) << refused.error().message;
  EXPECT_FALSE(profiled.stop().has_value());

  api::ProfileCall open = steps("2", 1);
  open.num_steps.reset();
  ASSERT_TRUE(profiled.start(open).has_value());
  const Status second = profiled.start(steps("3", 1));
  ASSERT_FALSE(second.has_value());
  EXPECT_NE(second.error().message.find("already in progress"), std::string::npos) << second.error().message;
  profiled.load(0, 10);
  EXPECT_TRUE(profiled.ranks.wait_for(8));
  EXPECT_TRUE(profiled.stop().has_value());  // answered when the files are there
  const std::vector<int64_t> recorded = steps_of(profiled.trace("2", 0));
  EXPECT_GE(recorded.size(), 10u);
  EXPECT_EQ(recorded, steps_of(profiled.trace("2", 1)));
  EXPECT_FALSE(profiled.stop().has_value());
}

TEST(Profile, StagesGoIntoFilesOfTheirOwnAndOneFileHasAllRanks) {
  Profiled profiled;
  api::ProfileCall call = steps("1", 2);
  call.by_stage = true;
  call.merge = true;
  ASSERT_TRUE(profiled.start(call).has_value());
  profiled.load(0, 40);
  for (const char* stage : {"EXTEND", "DECODE"}) {
    const Trace first = profiled.trace("1", 0, stage), second = profiled.trace("1", 1, stage);
    EXPECT_EQ(steps_of(first), steps_of(second));
    EXPECT_GE(steps_of(first).size(), 1u);
    EXPECT_LE(steps_of(first).size(), 2u);
  }
  EXPECT_TRUE(profiled.ranks.wait_for(8));
}

struct Spans {
  std::vector<const TraceEvent*> dispatches, waits, operators, begins, ends;
};

// By batch.
std::array<Spans, 2> sorted_spans(const Trace& trace) {
  std::array<Spans, 2> spans;
  for (const TraceEvent& event : trace.events) {
    Spans& of = spans[event.number("batch") > 0 ? 1 : 0];
    if (event.phase == 's') of.begins.push_back(&event);
    if (event.phase == 'f') of.ends.push_back(&event);
    if (event.phase != 'X') continue;
    if (event.name == "dispatch") of.dispatches.push_back(&event);
    if (event.name == "dispatch wait") of.waits.push_back(&event);
    if (event.category == "cpu_op" && event.number("layer", -1) >= 0) of.operators.push_back(&event);
  }
  return spans;
}

TEST(Profile, TracesHaveTracksCountersAndArrows) {
  Profiled profiled;
  profiled.load(0, 200);
  ASSERT_TRUE(profiled.start(steps("1", 3)).has_value());
  const Trace trace = profiled.trace("1", 0);
  std::set<std::string> names, counters;
  for (const TraceEvent& event : trace.events) {
    if (event.phase == 'X') names.insert(event.name);
    if (event.phase == 'C') counters.insert(event.name);
  }
  for (const char* name : {"step", "form batch", "vote wait", "sample", "layer", "linear", "rms_norm", "mla_decode",
                           "grouped_mlp", "gate", "combine", "dispatch", "dispatch wait", "combine wait"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
  EXPECT_EQ(counters, (std::set<std::string>{"requests", "KV blocks", "expert pairs", "expert balance"}));
  const Spans spans = sorted_spans(trace)[0];
  ASSERT_FALSE(spans.begins.empty());
  std::set<std::string> begins, ends;
  for (const TraceEvent* event : spans.begins) begins.insert(event->id);
  for (const TraceEvent* event : spans.ends) ends.insert(event->id);
  EXPECT_EQ(begins, ends);
  EXPECT_EQ(begins.size(), spans.dispatches.size());
  EXPECT_TRUE(profiled.ranks.wait_for(8));
}

TEST(Profile, ATwoBatchStepComputesOneHalfWhileRowsOfTheOtherTravel) {
  Profiled profiled(true);
  profiled.load(0, 200);
  ASSERT_TRUE(profiled.start(steps("1", 6)).has_value());
  const Trace trace = profiled.trace("1", 0);
  const std::array<Spans, 2> spans = sorted_spans(trace);  // points into the trace
  ASSERT_FALSE(spans[1].dispatches.empty());
  // Between the post of one half's rows and the beginning of the wait for them: operators of the other half.
  size_t overlapped = 0;
  for (int batch = 0; batch < 2; ++batch) {
    for (size_t i = 0; i < spans[size_t(batch)].dispatches.size(); ++i) {
      const TraceEvent& dispatch = *spans[size_t(batch)].dispatches[i];
      const double wait_us = spans[size_t(batch)].waits[i]->begin_us;
      overlapped += size_t(std::ranges::any_of(spans[size_t(1 - batch)].operators, [&](const TraceEvent* op) {
        return op->begin_us >= dispatch.begin_us && op->begin_us + op->duration_us <= wait_us;
      }));
    }
  }
  EXPECT_GT(overlapped, spans[0].dispatches.size() / 2);
  EXPECT_TRUE(profiled.ranks.wait_for(8));
}

}  // namespace
}  // namespace tandem::testing
