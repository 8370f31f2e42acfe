// Rows reach the ranks of their slots and results come back, whatever the mode, the batch sizes and the timing.
#include "parallel/expert_exchange.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <random>
#include <thread>

namespace tandem::parallel {
namespace {

using device::DType;
using device::TensorView;

constexpr int32_t kTopK = 3;
constexpr int64_t kHidden = 8;

ExchangeShape shape_of(int32_t num_ranks, int32_t slots_per_rank) {
  ExchangeShape shape;
  shape.num_ranks = num_ranks;
  shape.slots_per_rank = slots_per_rank;
  shape.top_k = kTopK;
  shape.hidden = kHidden;
  shape.dtype = DType::kF32;
  shape.max_tokens = 12;
  shape.max_low_latency_tokens = 6;
  shape.num_channels = 2;
  return shape;
}

// What one rank sends in one round: a function of (round, rank).
struct Dispatched {
  Dispatched(const ExchangeShape& shape, int32_t rank, int32_t round, int64_t most) {
    std::mt19937 random(uint32_t(round * 100 + rank));
    const int64_t tokens = std::uniform_int_distribution<int64_t>(0, most)(random);
    std::vector<int32_t> order(size_t(shape.num_ranks * shape.slots_per_rank));
    std::iota(order.begin(), order.end(), 0);
    for (int64_t i = 0; i < tokens * kHidden; ++i) x.push_back(float(round * 1000 + rank * 100) + float(i));
    for (int64_t t = 0; t < tokens; ++t) {
      std::shuffle(order.begin(), order.end(), random);
      slots.insert(slots.end(), order.begin(), order.begin() + kTopK);
    }
    results.resize(slots.size());
  }
  int64_t tokens() const { return int64_t(slots.size()) / kTopK; }
  TensorView x_view() { return {x.data(), DType::kF32, {tokens(), kHidden}}; }
  TensorView slot_view() { return {slots.data(), DType::kI32, {tokens(), kTopK}}; }
  std::vector<float> x;
  std::vector<int32_t> slots;
  std::vector<const float*> results;
};

// The "expert" of a slot: the row plus the slot's number.
void run_experts(const ReceivedRows& received, int32_t first_slot) {
  for (size_t s = 0; s + 1 < received.sort.slot_begin.size(); ++s) {
    for (int32_t pair = received.sort.slot_begin[s]; pair < received.sort.slot_begin[s + 1]; ++pair) {
      const float* row = received.rows.as<float>() + received.sort.row_token[size_t(pair)] * kHidden;
      float* result = received.results.as<float>() + pair * kHidden;
      for (int64_t i = 0; i < kHidden; ++i) result[i] = row[i] + float(first_slot + int32_t(s)) * 0.5f;
    }
  }
}

void expect_results(const Dispatched& sent) {
  for (size_t pair = 0; pair < sent.slots.size(); ++pair) {
    const float* row = sent.x.data() + pair / kTopK * kHidden;
    for (int64_t i = 0; i < kHidden; ++i) {
      ASSERT_EQ(sent.results[pair][i], row[i] + float(sent.slots[pair]) * 0.5f);
    }
  }
}

void run_rank(ExpertExchange& exchange, int32_t rounds) {
  const SystemClock clock;
  const ExchangeShape& shape = exchange.shape();
  const int32_t rank = exchange.rank().value;
  for (int32_t round = 0; round < rounds; ++round) {
    const bool low_latency = round % 2 == 1;
    const ExchangeMode mode = low_latency ? ExchangeMode::kLowLatency : ExchangeMode::kNormal;
    const int64_t most = low_latency ? shape.max_low_latency_tokens : shape.max_tokens;
    // Both channels are under way at once.
    std::array<Dispatched, 2> sent = {Dispatched(shape, rank, 2 * round, most),
                                      Dispatched(shape, rank, 2 * round + 1, most)};
    for (int32_t c : {0, 1}) {
      exchange.post_dispatch(c, {uint64_t(round), c}, mode, sent[size_t(c)].x_view(), sent[size_t(c)].slot_view());
    }
    for (int32_t c : {0, 1}) {
      for (;;) {
        const auto received = exchange.poll_received(c, clock.now());
        ASSERT_TRUE(received) << received.error().message;
        if (!*received) {
          exchange.wait(c, std::chrono::milliseconds(20));
          continue;
        }
        run_experts(**received, rank * shape.slots_per_rank);
        break;
      }
      exchange.post_results(c);
    }
    for (int32_t c : {1, 0}) {
      for (;;) {
        const auto complete = exchange.poll_results(c, clock.now(), sent[size_t(c)].results);
        ASSERT_TRUE(complete) << complete.error().message;
        if (*complete) break;
        exchange.wait(c, std::chrono::milliseconds(20));
      }
      expect_results(sent[size_t(c)]);
    }
  }
}

TEST(ExpertExchange, EveryPairComesBackFromItsSlot) {
  for (const auto& [ranks, slots] : {std::pair{1, 5}, std::pair{2, 4}, std::pair{4, 2}, std::pair{3, 1}}) {
    for (const int32_t spins : {0, 200}) {
      auto exchanges = make_local_exchanges(shape_of(ranks, slots), std::chrono::seconds(30), spins);
      std::vector<std::jthread> threads;
      for (auto& exchange : exchanges) {
        threads.emplace_back([&exchange] { run_rank(*exchange, 40); });
      }
    }
  }
}

TEST(ExpertExchange, ATokenWithSeveralSlotsOnARankTravelsOnce) {
  auto exchanges = make_local_exchanges(shape_of(2, 4), std::chrono::seconds(1), 0);
  std::vector<float> x(2 * kHidden, 1.0f);
  std::vector<int32_t> slots = {4, 7, 0, 5, 6, 7}, none;
  const TimePoint now{std::chrono::seconds(1)};
  exchanges[0]->post_dispatch(0, {1, 2}, ExchangeMode::kNormal, {x.data(), DType::kF32, {2, kHidden}},
                              {slots.data(), DType::kI32, {2, kTopK}});
  exchanges[1]->post_dispatch(0, {1, 2}, ExchangeMode::kNormal, {x.data(), DType::kF32, {0, kHidden}},
                              {none.data(), DType::kI32, {0, kTopK}});
  const auto received = exchanges[1]->poll_received(0, now);
  ASSERT_TRUE(received);
  ASSERT_TRUE(*received);
  EXPECT_EQ((*received)->rows.dim(0), 2);
  EXPECT_EQ((*received)->results.dim(0), 5);
  const std::vector<int32_t> begin((*received)->sort.slot_begin.begin(), (*received)->sort.slot_begin.end());
  EXPECT_EQ(begin, (std::vector<int32_t>{0, 1, 2, 3, 5}));
}

TEST(ExpertExchange, RanksThatStayAwayAreNamedAfterTheDeadline) {
  auto exchanges = make_local_exchanges(shape_of(3, 2), std::chrono::milliseconds(500), 0);
  std::vector<float> x(kHidden);
  std::vector<int32_t> slots = {0, 1, 2};
  const TensorView row(x.data(), DType::kF32, {1, kHidden}), choice(slots.data(), DType::kI32, {1, kTopK});
  exchanges[1]->post_dispatch(1, {17, 4}, ExchangeMode::kNormal, row, choice);
  ManualClock clock;
  clock.advance(std::chrono::seconds(1));
  EXPECT_TRUE(exchanges[1]->poll_received(1, clock.now()));
  clock.advance(std::chrono::milliseconds(499));
  EXPECT_TRUE(exchanges[1]->poll_received(1, clock.now()));
  clock.advance(std::chrono::milliseconds(1));
  const auto failed = exchanges[1]->poll_received(1, clock.now());
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, ErrorCode::kPeerLost);
  EXPECT_EQ(failed.error().message,
            "rank(s) 0, 2 of 3 did not dispatch layer 4 of step 17 within 0.500 s; asked by rank 1");
}

}  // namespace
}  // namespace tandem::parallel
