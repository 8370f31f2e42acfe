// Priorities: who goes first, who gives way, and that nothing else changes.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/engine/pair_rig.h"

namespace tandem::testing {
namespace {

engine::EngineConfig by_priority(engine::Role role = engine::Role::kCombined) {
  engine::EngineConfig config = small_config(role);
  config.priority_scheduling = true;
  return config;
}

api::EngineRequest request_of(uint64_t id, std::optional<int32_t> priority, int32_t prompt = 10, int32_t output = 4) {
  api::EngineRequest request = greedy_request(id, prompt_of(id, prompt), output);
  request.priority = priority;
  return request;
}

// The order in which these requests gave their first token.
std::vector<uint64_t> order_of_first_tokens(Rig& rig, size_t count) {
  std::vector<uint64_t> order;
  for (int turn = 0; turn < 10000 && order.size() < count; ++turn) {
    rig.turn();
    for (const auto& [id, answer] : rig.answers) {
      if (!answer.tokens.empty() && std::ranges::find(order, id) == order.end()) order.push_back(id);
    }
  }
  rig.run_until_idle();
  return order;
}

TEST(Priority, MoreUrgentRequestsGoFirstAndThoseWithoutAPriorityLast) {
  for (const bool low_first : {false, true}) {
    engine::EngineConfig config = by_priority();
    config.low_priority_values_first = low_first;
    config.max_running_requests = 1;
    config.preemption_threshold = 1000;
    Rig rig(config);
    rig.submit(request_of(1, std::nullopt));
    rig.submit(request_of(2, 1));
    rig.submit(request_of(3, 5));
    rig.submit(request_of(4, 5));
    const std::vector<uint64_t> expected =
        low_first ? std::vector<uint64_t>{2, 3, 4, 1} : std::vector{3ul, 4ul, 2ul, 1ul};
    EXPECT_EQ(order_of_first_tokens(rig, 4), expected);
    rig.expect_baseline();
  }
}

TEST(Priority, MeansNothingUnlessItIsSwitchedOn) {
  engine::EngineConfig config = small_config();
  config.max_running_requests = 1;
  Rig rig(config);
  rig.submit(request_of(1, 0));
  rig.submit(request_of(2, 100));
  EXPECT_EQ(order_of_first_tokens(rig, 2), (std::vector<uint64_t>{1, 2}));
}

TEST(Priority, ARunningRequestGivesWayBeyondTheThresholdAndEndsWithTheSameTokens) {
  engine::EngineConfig config = by_priority();
  config.max_running_requests = 1;
  Rig rig(config);
  rig.submit(request_of(1, 0, 10, 20));
  while (rig.answers[1].tokens.size() < 3) rig.turn();
  rig.submit(request_of(2, 11));
  rig.run_until_idle();
  EXPECT_EQ(rig.answers[1].retractions, 1);
  EXPECT_EQ(rig.answers[1].tokens, expected_tokens(prompt_of(1, 10), 20, Rig::kVocab));
  EXPECT_EQ(rig.answers[2].tokens, expected_tokens(prompt_of(2, 10), 4, Rig::kVocab));
  rig.expect_baseline();
}

TEST(Priority, NobodyGivesWayWithinTheThresholdOrInVain) {
  engine::EngineConfig config = by_priority();
  config.max_running_requests = 2;
  Rig rig(config);
  rig.submit(request_of(1, 0, 10, 30));
  rig.submit(request_of(2, 200, 100, 20));  // holds nearly half of the pool and is too urgent to give way
  while (rig.answers[2].tokens.empty()) rig.turn();
  rig.submit(request_of(3, 10));  // ten is not more than the threshold
  for (int i = 0; i < 3; ++i) rig.turn();
  EXPECT_EQ(rig.answers[1].retractions, 0);
  rig.run_until_idle();
  for (const uint64_t id : {1, 2, 3}) EXPECT_EQ(rig.answers[id].retractions, 0) << id;
  rig.expect_baseline();
}

TEST(Priority, AFullQueueMakesPlaceForAMoreUrgentRequestOnly) {
  engine::EngineConfig config = by_priority();
  config.max_running_requests = 1;
  config.max_queued_requests = 1;
  config.preemption_threshold = 1000;
  Rig rig(config);
  rig.submit(request_of(1, 9, 10, 30));
  while (rig.answers[1].tokens.empty()) rig.turn();
  rig.submit(request_of(2, 3));
  rig.submit(request_of(3, 3));
  rig.submit(request_of(4, 4));
  rig.run_until_idle();
  EXPECT_EQ(rig.answers[3].finish->message, "The request queue is full.");
  EXPECT_EQ(rig.answers[2].finish->message, "The request is aborted by a higher priority request.");
  EXPECT_EQ(rig.answers[2].finish->status_code, 503);
  EXPECT_EQ(rig.answers[4].tokens.size(), 4u);
  rig.expect_baseline();
}

TEST(Priority, OrdersThePromptsOfAPrefillServerAndTheSlotsOfADecodeServer) {
  PairOptions options;
  options.prefill = by_priority(engine::Role::kPrefill);
  options.prefill.max_prefill_tokens = options.prefill.chunked_prefill_size = 12;  // one prompt a step
  options.decode = by_priority(engine::Role::kDecode);
  options.decode.max_running_requests = 1;
  Pair pair(options);
  for (const uint64_t id : {1, 2, 3}) pair.submit(request_of(id, int32_t(id), 12, 6), id);
  std::vector<uint64_t> ended;
  for (int turn = 0; turn < 100000 && ended.size() < 3; ++turn) {
    pair.turn();
    for (const auto& [id, answer] : pair.decode->rig.answers) {
      if (answer.finish && std::ranges::find(ended, id) == ended.end()) ended.push_back(id);
    }
  }
  ASSERT_EQ(ended.size(), 3u);
  EXPECT_LT(std::ranges::find(ended, 3u), std::ranges::find(ended, 1u)) << "the most urgent one ends before the least";
  pair.run_until_idle();
  pair.expect_baseline();
}

}  // namespace
}  // namespace tandem::testing
