// The recorder's file: what it holds after a kill, what it keeps, and what the reader makes of bytes that are wrong.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "profile/flight_reader.h"
#include "profile/flight_recorder.h"

namespace tandem::profile {
namespace {

class FlightFile : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = std::filesystem::temp_directory_path() / "tandem-flight-test-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
    clock_.advance(std::chrono::seconds(1000));
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string path(int32_t rank = 0) const { return directory_ + "/rank-" + std::to_string(rank) + ".flight"; }
  std::unique_ptr<FlightRecorder> create(const Clock& clock, int32_t rank = 0) const {
    FlightIdentity identity;
    identity.rank = rank;
    identity.num_ranks = 4;
    identity.epoch = 99;
    auto recorder = FlightRecorder::create(path(rank), identity, clock);
    EXPECT_TRUE(recorder.has_value()) << (recorder ? "" : recorder.error().message);
    return std::move(*recorder);
  }
  static FlightEntry entry_of(FlightKind kind, uint64_t step) {
    FlightEntry entry;
    entry.kind = kind;
    entry.step = step;
    return entry;
  }
  std::vector<FlightLog> read() const {
    auto found = read_flight_directory(directory_, SystemClock());
    EXPECT_TRUE(found.has_value()) << (found ? "" : found.error().message);
    return found ? found->logs : std::vector<FlightLog>();
  }
  std::string bytes() const {
    std::ifstream file(path(), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write(const std::string& bytes) const { std::ofstream(path(), std::ios::binary) << bytes; }

  std::string directory_;
  ManualClock clock_;
};

TEST_F(FlightFile, HoldsTheLastEntriesAfterKillNine) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    const SystemClock clock;
    auto recorder = create(clock, 2);
    for (uint64_t step = 1; step <= 5000; ++step) recorder->add(entry_of(FlightKind::kVote, step));
    const char done = 1;
    if (::write(ready[1], &done, 1) != 1) _exit(1);
    for (;;) pause();
  }
  char done = 0;
  ASSERT_EQ(::read(ready[0], &done, 1), 1);
  EXPECT_EQ(read().at(0).process, FlightProcess::kRunning);
  kill(child, SIGKILL);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  close(ready[0]);
  close(ready[1]);

  const std::vector<FlightLog> logs = read();
  ASSERT_EQ(logs.size(), 1u);
  EXPECT_EQ(logs[0].process, FlightProcess::kGone);
  EXPECT_EQ(logs[0].header.rank, 2);
  EXPECT_EQ(logs[0].header.epoch, 99u);
  EXPECT_EQ(logs[0].header.is_closed, 0u);
  EXPECT_EQ(logs[0].num_torn, 0u);
  ASSERT_EQ(logs[0].entries.size(), kFlightLanes[0].size);
  EXPECT_EQ(logs[0].entries.front().step, 5000 - kFlightLanes[0].size + 1);
  EXPECT_EQ(logs[0].entries.back().step, 5000u);
  const double age_s = SystemClock().unix_seconds() - double(logs[0].entries.back().time_ns) / 1e9;
  EXPECT_GE(age_s, -1);
  EXPECT_LT(age_s, 60);
}

TEST_F(FlightFile, SaysThatARankEndedInOrder) {
  create(clock_)->add(entry_of(FlightKind::kVote, 1), clock_.now());
  EXPECT_EQ(read().at(0).header.is_closed, 1u);
}

TEST_F(FlightFile, KeepsVotesAndHandoversHoweverManyExchangesThereAre) {
  auto recorder = create(clock_);
  recorder->add(entry_of(FlightKind::kVote, 1));
  recorder->add(entry_of(FlightKind::kSent, 77));
  for (uint64_t i = 0; i < 10000; ++i) recorder->add(entry_of(FlightKind::kDispatch, i));
  const FlightLog log = read().at(0);
  ASSERT_EQ(log.entries.size(), kFlightLanes[1].size + 2);
  EXPECT_EQ(log.entries[0].kind, FlightKind::kVote);
  EXPECT_EQ(log.entries[1].kind, FlightKind::kSent);
  EXPECT_EQ(log.entries[1].step, 77u);
  EXPECT_EQ(log.entries.back().step, 9999u);
}

TEST_F(FlightFile, QuietRoundsShareFourSlotsAndKeepTheirOrder) {
  auto recorder = create(clock_);
  recorder->add(entry_of(FlightKind::kForwardEnd, 7));
  for (uint64_t step = 8; step < 5000; ++step) {
    recorder->add_quiet(entry_of(FlightKind::kVote, step), clock_.now());
    recorder->add_quiet(entry_of(FlightKind::kDecision, step), clock_.now());
  }
  recorder->add(entry_of(FlightKind::kVote, 5000));
  const std::vector<FlightEntry> entries = read().at(0).entries;
  ASSERT_EQ(entries.size(), 6u);
  EXPECT_EQ(entries[0].step, 7u);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(entries[i + 1].step, 4998 + i / 2);
  EXPECT_EQ(entries[5].step, 5000u);
}

TEST_F(FlightFile, LeavesOutEntriesThatWereBeingWritten) {
  {
    auto recorder = create(clock_);
    for (uint64_t step = 1; step <= 3; ++step) recorder->add(entry_of(FlightKind::kVote, step));
  }
  std::string torn = bytes();
  torn[kFlightHeaderBytes + kFlightEntryBytes + 40] ^= 1;                               // a word of the second
  std::memset(torn.data() + kFlightHeaderBytes + 2 * size_t(kFlightEntryBytes), 0, 8);  // the number of the third
  write(torn);
  const FlightLog log = read().at(0);
  EXPECT_EQ(log.num_torn, 2u);
  ASSERT_EQ(log.entries.size(), 1u);
  EXPECT_EQ(log.entries[0].step, 1u);
}

TEST_F(FlightFile, AReasonIsReadAsItWasWritten) {
  auto recorder = create(clock_);
  const std::string reason = "no vote for step 812 from rank(s) 3 of 4 within 60.000 s; asked by rank 0";
  recorder->add_end(812, reason);
  std::string read_back;
  const FlightLog log = read().at(0);
  for (const FlightEntry& entry : log.entries) {
    if (entry.kind == FlightKind::kText) read_back += flight_text(entry);
  }
  EXPECT_EQ(read_back, reason);
}

TEST_F(FlightFile, ALongAddressKeepsItsEnd) {
  FlightEntry entry;
  set_flight_peer(entry, 0x1234567890abcdefull, "decode-node-0012.cluster.local:8998");
  EXPECT_EQ(flight_epoch(entry), 0x1234567890abcdefull);
  EXPECT_EQ(flight_address(entry), "-0012.cluster.local:8998");
}

TEST_F(FlightFile, ACopyOfARunningRecorderHoldsWholeEntriesInOrder) {
  const SystemClock clock;
  auto recorder = create(clock);
  std::atomic<bool> stop = false;
  std::jthread writer([&] {
    for (uint64_t step = 1; !stop; ++step) {
      FlightEntry entry = entry_of(FlightKind::kVote, step);
      entry.words.fill(uint32_t(step));
      recorder->add(entry);
    }
  });
  const FlightRecorder* recorders[] = {recorder.get()};
  for (int i = 0; i < 50; ++i) {
    const auto logs = parse_flight_logs(copy_flights(recorders), "copy");
    ASSERT_TRUE(logs.has_value());
    EXPECT_EQ((*logs)[0].process, FlightProcess::kRunning);
    uint64_t last = 0;
    for (const FlightEntry& entry : (*logs)[0].entries) {
      EXPECT_GT(entry.step, last);
      last = entry.step;
      for (const uint32_t word : entry.words) ASSERT_EQ(word, uint32_t(entry.step));
    }
  }
  stop = true;
}

TEST_F(FlightFile, WhatIsNoRecordingIsNamedWithItsFault) {
  create(clock_);
  const std::string whole = bytes();
  const auto fault_of = [&](std::string bytes) {
    write(bytes);
    const auto found = read_flight_directory(directory_, SystemClock());
    EXPECT_FALSE(found.has_value());
    return found ? "" : found.error().message;
  };
  EXPECT_EQ(fault_of(""), path() + ": 0 bytes are no flight recording");
  EXPECT_EQ(fault_of("x" + whole.substr(1)), path() + ": no flight recording");
  EXPECT_EQ(fault_of(whole.substr(0, 5000)), path() + ": 5000 bytes, wanted 266240");
  std::string other = whole;
  other[8] = 9;
  EXPECT_EQ(fault_of(other), path() + ": version 9 of a flight recording, this is 1");
  other = whole;
  other[16] = 1;
  EXPECT_NE(fault_of(other).find("4097 entries"), std::string::npos);
  std::string negative = whole;
  negative[48] = char(0xff);  // rank 255 of 4
  EXPECT_NE(fault_of(negative).find("rank 255 of 4"), std::string::npos);
}

TEST_F(FlightFile, AFileThatIsBrokenDoesNotHideTheOthers) {
  create(clock_, 1);
  write("garbage");
  const auto found = read_flight_directory(directory_, SystemClock());
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->logs.size(), 1u);
  ASSERT_EQ(found->faults.size(), 1u);
  EXPECT_NE(found->faults[0].find("7 bytes are no flight recording"), std::string::npos);
}

TEST_F(FlightFile, ADirectoryWithoutRecordingsIsAnError) {
  const auto none = read_flight_directory(directory_, SystemClock());
  ASSERT_FALSE(none.has_value());
  EXPECT_EQ(none.error().message, directory_ + ": no flight recording (*.flight) in it");
  EXPECT_FALSE(read_flight_directory(directory_ + "/none", SystemClock()).has_value());
}

TEST_F(FlightFile, AFileThatCannotBeMadeIsAnErrorThatNamesIt) {
  const auto refused = FlightRecorder::create("/proc/none/rank-0.flight", {}, clock_);
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().message.find("/proc/none/rank-0.flight"), std::string::npos);
}

TEST_F(FlightFile, ADiskWithoutRoomIsAnErrorThatSaysSo) {
  const pid_t child = fork();
  if (child == 0) {
    const rlimit small{4096, 4096};  // the largest file, in place of a full disk
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    const auto refused = FlightRecorder::create(path(), {}, clock_);
    const bool says_so = !refused && refused.error().message.find("no room for 266240 bytes") != std::string::npos;
    _exit(says_so ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_FALSE(std::filesystem::exists(path())) << "nothing is left behind";
}

}  // namespace
}  // namespace tandem::profile
