// Which folders of recordings a start removes: of this user's dead servers, and a day after their last word.
#include "app/flight_sweep.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "profile/flight_recorder.h"

namespace tandem::app {
namespace {

namespace fs = std::filesystem;

// The machine's clock, moved.
class LaterClock final : public Clock {
 public:
  explicit LaterClock(Duration by) : by_(by) {}
  TimePoint now() const override { return SystemClock().now(); }
  double unix_seconds() const override { return SystemClock().unix_seconds() + seconds(by_); }

 private:
  const Duration by_;
};

class FlightSweepTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = fs::temp_directory_path() / "tandem-sweep-test-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    parent_ = name;
  }
  void TearDown() override { fs::remove_all(parent_); }

  fs::path folder(const std::string& name) const {
    const fs::path path = fs::path(parent_) / ("tandem-flight-" + name);
    fs::create_directory(path);
    return path;
  }
  static std::unique_ptr<profile::FlightRecorder> record(const fs::path& folder, const Clock& clock) {
    auto made = profile::FlightRecorder::create(folder / "rank-0.flight", {}, clock);
    if (!made) return nullptr;
    profile::FlightEntry entry;
    entry.kind = profile::FlightKind::kVote;
    (*made)->add(entry);
    return std::move(*made);
  }
  // Of a process that is gone, whose clock was ahead by so much.
  fs::path dead(const std::string& name, Duration ahead = {}) const {
    const fs::path path = folder(name);
    const pid_t child = fork();
    if (child == 0) {
      const LaterClock clock(ahead);
      const auto recorder = record(path, clock);
      _exit(recorder ? 0 : 1);  // as kill -9 leaves it
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
    return path;
  }
  int sweep(Duration later, int max_folders = 256) const {
    return sweep_flight_folders(parent_, LaterClock(later), {.max_folders = max_folders});
  }

  static constexpr Duration kDay = std::chrono::hours(24), kHour = std::chrono::hours(1);
  std::string parent_;
};

TEST_F(FlightSweepTest, FoldersOfDeadServersGoADayAfterTheirLastWord) {
  const fs::path gone = dead("decode-1-aaaaaa");
  const fs::path late = dead("decode-2-aaaaaa", 5 * kHour);  // went on recording; the file's own time does not show it
  fs::create_directory(fs::path(parent_) / "tandem-flight-decode-3-aaaaaa");  // died before its first file
  EXPECT_EQ(sweep(kDay - kHour), 0);
  EXPECT_TRUE(fs::exists(gone));
  EXPECT_EQ(sweep(kDay + kHour), 2);
  EXPECT_FALSE(fs::exists(gone));
  EXPECT_TRUE(fs::exists(late));
  EXPECT_EQ(sweep(kDay + 6 * kHour), 1);
  EXPECT_FALSE(fs::exists(late));
}

TEST_F(FlightSweepTest, ALivingServersFolderStaysHoweverOldItIs) {
  const fs::path living = folder("decode-1-aaaaaa");
  const SystemClock clock;
  const auto recorder = record(living, clock);
  ASSERT_NE(recorder, nullptr);
  EXPECT_EQ(sweep(30 * kDay), 0);
  EXPECT_TRUE(fs::exists(living / "rank-0.flight"));
}

TEST_F(FlightSweepTest, WhatIsNotARecordingOrNotOursStays) {
  const fs::path mixed = dead("decode-1-aaaaaa"), broken = dead("decode-2-aaaaaa"), other = dead("decode-3-aaaaaa");
  std::ofstream(mixed / "notes.txt") << "mine";
  std::ofstream(broken / "rank-0.flight") << "garbage";
  fs::rename(other, fs::path(parent_) / "flight");
  fs::create_directory_symlink(fs::path(parent_) / "flight", fs::path(parent_) / "tandem-flight-decode-3-aaaaaa");
  EXPECT_EQ(sweep(30 * kDay), 0);
  EXPECT_TRUE(fs::exists(mixed / "rank-0.flight"));
  EXPECT_TRUE(fs::exists(broken / "rank-0.flight"));
  EXPECT_TRUE(fs::exists(fs::path(parent_) / "flight" / "rank-0.flight"));
  if (geteuid() != 0) GTEST_SKIP() << "another user's folder needs root to be made";
  const fs::path theirs = dead("decode-4-aaaaaa");
  ASSERT_EQ(chown(theirs.c_str(), 65534, 65534), 0);
  EXPECT_EQ(sweep(30 * kDay), 0);
  EXPECT_TRUE(fs::exists(theirs / "rank-0.flight"));
}

TEST_F(FlightSweepTest, OneStartLooksIntoAFewOnly) {
  for (int i = 0; i < 5; ++i) folder("decode-" + std::to_string(i) + "-aaaaaa");
  EXPECT_EQ(sweep(2 * kDay, 3), 3);
  EXPECT_EQ(sweep(2 * kDay, 3), 2);
}

TEST_F(FlightSweepTest, AParentThatIsNotThereIsNothingToSweep) {
  EXPECT_EQ(sweep_flight_folders(parent_ + "/none", SystemClock()), 0);
}

}  // namespace
}  // namespace tandem::app
