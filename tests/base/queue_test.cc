#include "base/queue.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>
#include <vector>

namespace tandem {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(BoundedQueue, PushBeyondCapacityAnswersFull) {
  BoundedQueue<int> queue(2);
  EXPECT_EQ(queue.push(1), PushResult::kPushed);
  EXPECT_EQ(queue.push(2), PushResult::kPushed);
  EXPECT_EQ(queue.push(3), PushResult::kFull);
  EXPECT_EQ(queue.try_pop(), 1);
  EXPECT_EQ(queue.push(3), PushResult::kPushed);
}

TEST(BoundedQueue, CloseRefusesPushesAndDrainsWhatIsLeft) {
  BoundedQueue<int> queue(4);
  ASSERT_EQ(queue.push(7), PushResult::kPushed);
  queue.close();
  EXPECT_EQ(queue.push(8), PushResult::kClosed);
  EXPECT_EQ(queue.pop(seconds(0)), 7);
  EXPECT_EQ(queue.pop(seconds(60)), std::nullopt);
}

TEST(BoundedQueue, PopGivesUpAtItsDeadline) {
  BoundedQueue<int> queue(1);
  auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(queue.pop(milliseconds(20)), std::nullopt);
  EXPECT_GE(std::chrono::steady_clock::now() - begin, milliseconds(20));
}

TEST(BoundedQueue, CloseAndWakeEndAWaitingPop) {
  for (bool close : {true, false}) {
    BoundedQueue<int> queue(1);
    std::optional<int> got = 1;
    std::jthread waiter([&] { got = queue.pop(seconds(60)); });
    if (close) {
      queue.close();
    } else {
      queue.wake();  // kept until the next pop, so the order of the two threads does not matter
    }
    waiter.join();
    EXPECT_EQ(got, std::nullopt);
  }
}

TEST(BoundedQueue, EveryValueOfManyProducersArrivesOnce) {
  constexpr int kEach = 2000;
  BoundedQueue<int> queue(16);
  std::vector<std::jthread> producers;
  for (int p = 0; p < 3; ++p) {
    producers.emplace_back([&, p] {
      for (int i = 0; i < kEach;) {
        if (queue.push(p * kEach + i) == PushResult::kPushed) {
          ++i;
        } else {
          std::this_thread::yield();
        }
      }
    });
  }
  std::set<int> seen;
  while (seen.size() < 3 * kEach) {
    std::optional<int> value = queue.pop(seconds(30));
    ASSERT_TRUE(value.has_value());
    EXPECT_TRUE(seen.insert(*value).second);
  }
}

}  // namespace
}  // namespace tandem
