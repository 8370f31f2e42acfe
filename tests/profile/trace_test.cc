// Traces: what is written is what Perfetto's format says, and reads back; files that are cut or cannot be written.
#include "profile/trace.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/json.h"
#include "profile/gzip.h"
#include "profile/trace_reader.h"
#include "profile/trace_writer.h"

namespace tandem::profile {
namespace {

class Directory {
 public:
  Directory() {
    std::string name = std::filesystem::temp_directory_path() / "tandem-trace-XXXXXX";
    CHECK(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~Directory() { std::filesystem::remove_all(path_); }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }
  size_t num_files() const {
    return size_t(std::distance(std::filesystem::directory_iterator(path_), std::filesystem::directory_iterator()));
  }

 private:
  std::string path_;
};

Span span_of(Track track, const char* name, int64_t begin_ns, int64_t end_ns) {
  Span span{};
  span.track = track;
  span.name = name;
  span.begin_ns = begin_ns;
  span.end_ns = end_ns;
  span.layer = -1;
  return span;
}

SpanBuffer example() {
  SpanBuffer spans(16);
  Span op = span_of(Track::kOp, "linear", 2'000'500, 2'001'500);
  op.layer = 2;
  op.dims = {4, 512, 256};
  op.num_dims = 3;
  op.values = {2000, 500};
  op.num_values = 2;
  spans.push(op);
  Span begin = span_of(Track::kExchange, "exchange", 2'001'000, 0);
  begin.kind = SpanKind::kFlowBegin;
  begin.id = 77;
  begin.batch = 1;
  spans.push(begin);
  begin.kind = SpanKind::kFlowEnd;
  spans.push(begin);
  Span counter = span_of(Track::kStep, "requests", 2'002'000, 0);
  counter.kind = SpanKind::kCounter;
  counter.labels = "running,queued,share";
  counter.dims = {5, 6};
  counter.num_dims = 2;
  counter.values[0] = 0.25;
  counter.num_values = 1;
  spans.push(counter);
  Span step = span_of(Track::kStep, "step", 1'000'000, 3'000'000);
  step.text = "decode";
  step.id = 12;
  step.labels = "num_tokens,num_sequences";
  step.dims = {5, 5};
  step.num_dims = 2;
  spans.push(step);
  return spans;
}

SpanBuffer transfers() {
  SpanBuffer spans(4);
  Span read = span_of(Track::kTransfer, "read", 900'000, 2'500'000);
  read.kind = SpanKind::kAsync;
  read.id = 3;
  spans.push(read);
  return spans;
}

TraceInfo info_of(int32_t rank = 1) {
  TraceInfo info;
  info.profile_id = "1763882692.8351896";
  info.rank = rank;
  info.rank_name = "DP1 TP1 EP1";
  info.role = "decode";
  info.base_ns = 1'000'000;
  info.base_unix_ns = 1'763'882'692'000'000'000;
  return info;
}

std::string text_of(const TraceInfo& info, const SpanBuffer& spans, const SpanBuffer& more) {
  std::string text;
  format_trace(info, {&spans, &more}, [&](std::string_view piece) { text += piece; });
  return text;
}

const TraceEvent& find(const Trace& trace, char phase, const std::string& name) {
  for (const TraceEvent& event : trace.events) {
    if (event.phase == phase && event.name == name) return event;
  }
  ADD_FAILURE() << "no event " << phase << " " << name;
  static const TraceEvent none;
  return none;
}

TEST(Trace, WhatIsWrittenReadsBack) {
  const auto trace = parse_trace(text_of(info_of(), example(), transfers()), "test");
  ASSERT_TRUE(trace.has_value()) << trace.error().message;
  EXPECT_EQ(trace->base_unix_ns, info_of().base_unix_ns);
  EXPECT_EQ(trace->dropped_spans, 0);
  const TraceEvent& op = find(*trace, 'X', "linear");
  EXPECT_EQ(op.category, "cpu_op");
  EXPECT_EQ(op.pid, 1);
  EXPECT_DOUBLE_EQ(op.begin_us, 1000.5);
  EXPECT_DOUBLE_EQ(op.duration_us, 1);
  EXPECT_EQ(op.dims, (std::vector<int64_t>{4, 512, 256}));
  EXPECT_EQ(op.number("flops"), 2000);
  EXPECT_EQ(op.number("layer"), 2);
  const TraceEvent& step = find(*trace, 'X', "step");
  EXPECT_EQ(step.number("step"), 12);
  EXPECT_EQ(step.text("kind"), "decode");
  EXPECT_EQ(step.number("num_tokens"), 5);
  const TraceEvent& counter = find(*trace, 'C', "requests");
  EXPECT_EQ(counter.number("running"), 5);
  EXPECT_EQ(counter.number("share"), 0.25);
  EXPECT_EQ(find(*trace, 's', "exchange").id, find(*trace, 'f', "exchange").id);
  EXPECT_NE(find(*trace, 's', "exchange").tid, op.tid);
  EXPECT_DOUBLE_EQ(find(*trace, 'b', "read").begin_us, 0);  // began before the trace
  EXPECT_DOUBLE_EQ(find(*trace, 'e', "read").begin_us, 1500);
  EXPECT_EQ(find(*trace, 'M', "process_name").text("name"), "decode rank 1 DP1 TP1 EP1");
}

TEST(Trace, ShapesAreThereWhenAsked) {
  TraceInfo info = info_of();
  info.with_shapes = false;
  const std::string text = text_of(info, example(), transfers());
  EXPECT_EQ(text.find("Input Dims"), std::string::npos);
  EXPECT_NE(text.find("\"flops\":2000"), std::string::npos);
}

TEST(Trace, SpansThatDidNotFitAreCounted) {
  SpanBuffer spans(1);
  spans.push(span_of(Track::kOp, "a", 0, 1));
  spans.push(span_of(Track::kOp, "b", 0, 1));
  EXPECT_EQ(parse_trace(text_of(info_of(), spans, {}), "test")->dropped_spans, 1);
}

TEST(Trace, FileNamesAreSglangs) {
  EXPECT_EQ(trace_file_name("", "17.5", "", ""), "17.5-TP-0.trace.json.gz");
  EXPECT_EQ(trace_file_name("", "17.5", "DP3 TP3 EP3", ""), "17.5-TP-3-DP-3-EP-3.trace.json.gz");
  EXPECT_EQ(trace_file_name("bs-8", "17.5", "DP1 TP12 EP12", "DECODE"),
            "bs-8-17.5-TP-12-DP-1-EP-12-DECODE.trace.json.gz");
}

TEST(Trace, AFileIsGzipThatReadsBackWholeAndIsRefusedWhenCutOrDamaged) {
  const Directory directory;
  const std::string path = directory.file("t.trace.json.gz");
  ASSERT_TRUE(write_trace(info_of(), {}, path).has_value());
  const SpanBuffer spans = example();
  ASSERT_TRUE(write_trace(info_of(), {&spans}, path).has_value());
  EXPECT_EQ(directory.num_files(), 1u);  // no temporary file is left
  ASSERT_TRUE(read_trace(path).has_value());
  EXPECT_EQ(find(*read_trace(path), 'X', "step").number("step"), 12);
  std::string bytes(std::filesystem::file_size(path), '\0');
  std::ifstream(path, std::ios::binary).read(bytes.data(), std::streamsize(bytes.size()));
  EXPECT_EQ(bytes.substr(0, 2), "\x1f\x8b");
  const auto write = [&](const std::string& content) {
    std::ofstream(path, std::ios::binary) << content;
    return read_trace(path);
  };
  EXPECT_FALSE(write(bytes.substr(0, bytes.size() / 2)).has_value());
  bytes[bytes.size() / 2] = char(bytes[bytes.size() / 2] ^ 0x55);
  EXPECT_FALSE(write(bytes).has_value());
  EXPECT_FALSE(write("{\"a\":1}").has_value());
  EXPECT_FALSE(write("").has_value());
  EXPECT_TRUE(write("[]").has_value());  // a bare list is a trace, too
  EXPECT_FALSE(read_trace(directory.path()).has_value());
  EXPECT_FALSE(read_trace(directory.file("none")).has_value());
}

TEST(Trace, AFullDiskAndAMissingDirectoryAreErrorsThatNameTheFile) {
  const Directory directory;
  const auto missing = write_trace(info_of(), {}, directory.file("no/such/t.gz"));
  ASSERT_FALSE(missing.has_value());
  EXPECT_NE(missing.error().message.find("no/such/t.gz: cannot write: No such file"), std::string::npos)
      << missing.error().message;
  std::filesystem::create_symlink("/dev/full", directory.file("t.gz.tmp"));
  const auto full = write_trace(info_of(), {}, directory.file("t.gz"));
  ASSERT_FALSE(full.has_value());
  EXPECT_NE(full.error().message.find("No space left on device"), std::string::npos) << full.error().message;
  EXPECT_EQ(directory.num_files(), 0u);
}

TEST(Trace, DirectoriesAreMadeOrRefusedWithTheReason) {
  const Directory directory;
  EXPECT_TRUE(prepare_directory(directory.file("a/b")).has_value());
  EXPECT_TRUE(std::filesystem::is_directory(directory.file("a/b")));
  std::ofstream(directory.file("file")) << "x";
  const auto refused = prepare_directory(directory.file("file/below"));
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidInput);
}

TEST(Trace, MergedFilesKeepProcessesAndIdsApartAndMoveTimes) {
  const Directory directory;
  const SpanBuffer spans = example();
  TraceInfo later = info_of(1);
  later.base_unix_ns += 5'000'000;
  ASSERT_TRUE(write_trace(info_of(1), {&spans}, directory.file("a.gz")).has_value());
  ASSERT_TRUE(write_trace(later, {&spans}, directory.file("b.gz")).has_value());
  ASSERT_TRUE(merge_traces({directory.file("a.gz"), directory.file("b.gz")}, directory.file("m.gz")).has_value());
  const auto merged = read_trace(directory.file("m.gz"));
  ASSERT_TRUE(merged.has_value()) << merged.error().message;
  std::vector<TraceEvent> steps;
  std::set<std::string> ids;
  for (const TraceEvent& event : merged->events) {
    if (event.phase == 'X' && event.name == "step") steps.push_back(event);
    if (event.phase == 's') ids.insert(event.id);
  }
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_NE(steps[0].pid, steps[1].pid);
  EXPECT_DOUBLE_EQ(steps[1].begin_us - steps[0].begin_us, 5000);
  EXPECT_EQ(ids.size(), 2u);
  EXPECT_FALSE(merge_traces({directory.file("none")}, directory.file("n.gz")).has_value());
  EXPECT_FALSE(std::filesystem::exists(directory.file("n.gz")));
}

TEST(Trace, TheTableHasRatesAndShares) {
  const auto trace = parse_trace(text_of(info_of(), example(), {}), "test");
  const std::string table = operator_table(*trace);
  // 2,000 operations and 500 bytes in 1 us, of a step of 2 ms.
  EXPECT_NE(table.find("decode steps: 1, 2.000 ms on average (2.000 to 2.000), 5.0 tokens on average"),
            std::string::npos)
      << table;
  EXPECT_NE(
      table.find("linear 512x256                            1        0.001       1.00    0.05       2.00       0.50"),
      std::string::npos)
      << table;
  EXPECT_NE(table.find("everything else"), std::string::npos);
}

TEST(TraceWriter, WritesAnswersAndMergesWhenAllRanksAreThere) {
  const Directory directory;
  const SystemClock clock;
  std::atomic<int> good{0}, bad{0};
  {
    TraceWriter writer(clock);
    const auto answer = [&](const Status& status) { (status ? good : bad) += 1; };
    writer.prepare(directory.file("new"), answer);
    writer.prepare("/dev/null/below", answer);
    for (const int32_t rank : {0, 1}) {
      TraceJob job;
      job.info = info_of(rank);
      job.info.rank_name = rank == 0 ? "DP0 TP0 EP0" : "DP1 TP1 EP1";
      job.spans = example();
      job.directory = directory.file("new");
      job.prefix = "p";
      job.num_ranks = 2;
      job.merge = rank == 0;
      job.done = answer;
      writer.submit(std::move(job));
    }
    TraceJob lost;
    lost.directory = directory.file("missing");
    lost.done = answer;
    writer.submit(std::move(lost));
  }
  EXPECT_EQ(good, 3);
  EXPECT_EQ(bad, 2);
  const auto merged = read_trace(directory.file("new/p-merged-1763882692.8351896.trace.json.gz"));
  ASSERT_TRUE(merged.has_value()) << merged.error().message;
  std::set<int64_t> processes;
  for (const TraceEvent& event : merged->events) processes.insert(event.pid);
  EXPECT_EQ(processes.size(), 2u);
  EXPECT_TRUE(read_trace(directory.file("new/p-1763882692.8351896-TP-1-DP-1-EP-1.trace.json.gz")).has_value());
}

}  // namespace
}  // namespace tandem::profile
