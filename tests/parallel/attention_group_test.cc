#include "parallel/attention_group.h"

#include <gtest/gtest.h>

#include <array>
#include <thread>

namespace tandem::parallel {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// One round: shows a value of this round in one of two places, used alternately, and adds up what all show.
int64_t add_up(AttentionGroup& seat, std::array<int64_t, 2>& memory, uint64_t round, const Clock& clock) {
  int64_t& mine = memory[round % 2];
  mine = int64_t(round) * 100 + seat.index();
  seat.post({round, 0}, &mine);
  for (;;) {
    const Result<bool> complete = seat.poll(clock.now());
    CHECK(complete.has_value());
    if (*complete) break;
    seat.wait(seconds(5));
  }
  int64_t sum = 0;
  for (int32_t i = 0; i < seat.size(); ++i) sum += *static_cast<const int64_t*>(seat.of(i));
  return sum;
}

TEST(AttentionGroup, EveryMemberReadsWhatAllShowInTheSameRound) {
  const SystemClock clock;
  auto seats = make_attention_groups(Rank{4}, 6, 3, seconds(30), 0);
  std::vector<std::array<int64_t, 2>> memories(seats.size());  // read by others after a thread's last round
  std::vector<std::jthread> threads;
  for (size_t i = 0; i < seats.size(); ++i) {
    threads.emplace_back([&clock, &seat = *seats[i], &memory = memories[i]] {
      for (uint64_t round = 0; round < 3000; ++round) {
        ASSERT_EQ(add_up(seat, memory, round, clock), int64_t(round) * 300 + 3) << round;
      }
    });
  }
}

TEST(AttentionGroup, AMemberThatDoesNotComeIsNamed) {
  ManualClock clock;
  clock.advance(seconds(1));
  auto seats = make_attention_groups(Rank{4}, 4, 2, seconds(30), 0);
  const int64_t value = 1;
  seats[2]->post({7, 5}, &value);
  EXPECT_FALSE(*seats[2]->poll(clock.now()));
  clock.advance(seconds(31));
  const Result<bool> late = seats[2]->poll(clock.now());
  ASSERT_FALSE(late.has_value());
  EXPECT_EQ(late.error().code, ErrorCode::kPeerLost);
  EXPECT_EQ(late.error().message,
            "rank(s) 7 did not come to the attention of layer 5 of step 7 within 30.000 s; asked by rank 6");
}

TEST(AttentionGroup, NobodyWaitsForAMemberThatGaveUp) {
  ManualClock clock;
  clock.advance(seconds(1));
  auto seats = make_attention_groups(Rank{0}, 2, 2, seconds(30), 0);
  const int64_t value = 1;
  seats[0]->post({1, 0}, &value);
  seats[1]->post({1, 0}, &value);
  seats[1]->give_up();
  EXPECT_TRUE(*seats[0]->poll(clock.now())) << "it had come to this round";
  seats[0]->post({1, 1}, &value);
  seats[0]->wait(seconds(60));
  const Result<bool> gone = seats[0]->poll(clock.now());
  ASSERT_FALSE(gone.has_value());
  EXPECT_EQ(gone.error().message, "rank(s) 1 gave up before the attention of layer 1 of step 1; asked by rank 0");
}

TEST(AttentionGroup, SharesCoverEveryRowOnce) {
  for (int32_t size = 1; size <= 5; ++size) {
    for (int64_t rows = 0; rows <= 17; ++rows) {
      int64_t next = 0;
      for (int32_t i = 0; i < size; ++i) {
        const RowShare share = share_of(rows, size, i);
        EXPECT_EQ(share.begin, next);
        EXPECT_LE(share.count(), largest_share(rows, size));
        next = share.end;
      }
      EXPECT_EQ(next, rows);
    }
  }
}

}  // namespace
}  // namespace tandem::parallel
