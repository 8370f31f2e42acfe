#include "device/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace tandem::device {
namespace {

TEST(ThreadPool, RunsEveryIndexOnceOnThreadsInRange) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (const int64_t count : {0, 1, 2, 3, 100, 1000}) {
      std::vector<std::atomic<int>> runs(size_t(count) + 1);
      std::atomic<int> bad_thread{0};
      pool.parallel_for(count, [&](int64_t i, int thread) {
        ++runs[size_t(i)];
        if (thread < 0 || thread >= threads) ++bad_thread;
      });
      for (int64_t i = 0; i < count; ++i) EXPECT_EQ(runs[size_t(i)], 1);
      EXPECT_EQ(bad_thread, 0);
    }
  }
}

// Plain memory written in a loop is visible to the caller after it and to other threads in the next one.
TEST(ThreadPool, LoopsAreOrderedOneAfterAnother) {
  ThreadPool pool(4);
  std::vector<int64_t> values(64, 0), sums(64, 0);
  for (int64_t round = 1; round <= 500; ++round) {
    pool.parallel_for(64, [&](int64_t i, int) { values[size_t(i)] += i; });
    pool.parallel_for(64, [&](int64_t i, int) { sums[size_t(i)] = values[size_t(63 - i)]; });
    EXPECT_EQ(sums[0], 63 * round);
  }
}

TEST(ThreadPool, ScratchOfAThreadIsNeverShared) {
  ThreadPool pool(3);
  std::vector<int64_t> scratch(3, 0);
  for (int round = 0; round < 200; ++round) {
    pool.parallel_for(50, [&](int64_t, int thread) { ++scratch[size_t(thread)]; });
  }
  EXPECT_EQ(scratch[0] + scratch[1] + scratch[2], 200 * 50);
}

// Workers park after tens of microseconds; a loop that comes later must wake them (or be finished by the caller).
TEST(ThreadPool, WorksAfterItsWorkersHaveParked) {
  ThreadPool pool(3);
  for (int round = 0; round < 20; ++round) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(2);
    while (std::chrono::steady_clock::now() < until) std::this_thread::yield();
    std::atomic<int> runs{0};
    pool.parallel_for(10, [&](int64_t, int) { ++runs; });
    EXPECT_EQ(runs, 10);
  }
}

TEST(ThreadPool, SeveralThreadsTakePart) {
  ThreadPool pool(2);
  std::atomic<int> arrived{0};
  // Each index waits for the other: one thread alone would never finish.
  pool.parallel_for(2, [&](int64_t, int) {
    ++arrived;
    while (arrived < 2) std::this_thread::yield();
  });
  EXPECT_EQ(arrived, 2);
}

TEST(ThreadPool, StartsAndStopsWithoutALoop) {
  for (int i = 0; i < 50; ++i) ThreadPool pool(4);
}

}  // namespace
}  // namespace tandem::device
