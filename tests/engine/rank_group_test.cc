// Several ranks behind one door: where requests go, and that tokens are those of one rank while experts move.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "base/json.h"
#include "tests/engine/rank_group_rig.h"

namespace tandem::testing {
namespace {

std::vector<int32_t> prompt_of_text(uint64_t id) {
  std::mt19937 random(uint32_t(id % 16));
  std::vector<int32_t> prompt{0};
  for (size_t i = 0; i < 5 + id % 16 * 4; ++i) prompt.push_back(int32_t(3 + random() % 8000));
  return prompt;
}

api::EngineRequest request_of(uint64_t id) { return greedy_request(id, prompt_of_text(id), 24); }

std::vector<std::vector<int32_t>> tokens_of_one_rank() {
  RankGroup alone({});
  for (uint64_t id = 0; id < 16; ++id) alone.group.group.submit(engine::SubmitCommand{request_of(id)});
  EXPECT_TRUE(alone.wait_for(16));
  std::vector<std::vector<int32_t>> tokens;
  for (uint64_t id = 0; id < 16; ++id) tokens.push_back(alone.answer(id).tokens);
  return tokens;
}

// A snapshot follows the last event by a turn: waits until nothing is held any more, a minute at most.
std::vector<engine::EngineSnapshot> settled(RankGroup& ranks) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  for (;;) {
    std::vector<engine::EngineSnapshot> all = ranks.group.group.snapshots();
    const engine::EngineSnapshot sum = engine::combine(all);
    const bool idle = sum.leased_blocks == 0 && sum.running + sum.queued == 0;
    if (idle || std::chrono::steady_clock::now() > deadline) return all;
    std::this_thread::yield();
  }
}

std::string random_placement_json(uint32_t seed, int32_t num_slots) {
  std::mt19937 random(seed);
  json::Array layers;
  for (int32_t layer = 0; layer < 6; ++layer) {
    std::vector<int32_t> row;
    for (int32_t slot = 0; slot < num_slots; ++slot) row.push_back(slot < 32 ? slot : int32_t(random() % 32));
    std::shuffle(row.begin(), row.end(), random);
    layers.push_back(json::Array(row.begin(), row.end()));
  }
  json::Object object;
  object["physical_to_logical_map"] = std::move(layers);
  return json::dump(object);
}

// O4 of the balancing contract: traffic goes on, experts move all the time, and no token differs.
void run_under_rebalances(uint64_t rebalances) {
  const std::vector<std::vector<int32_t>> wanted = tokens_of_one_rank();
  RankGroup::Options options;
  options.num_ranks = 4;
  options.slots_per_rank = 10;
  options.num_spares = 3;
  options.balancer.layers_per_version = 2;
  options.balancer.bytes_per_step = 2 << 20;
  RankGroup ranks(options);
  uint64_t submitted = 0, refused = 0;
  for (uint32_t seed = 0; ranks.group.balancer->view().epoch < rebalances; ++seed) {
    std::atomic<int> accepted{-1};
    ranks.group.balancer->rebalance("", random_placement_json(seed, 40),
                                    [&](Result<engine::RebalanceReply> reply) { accepted = reply ? 1 : 0; });
    if (submitted < 32 || ranks.wait_for(submitted - 24)) {
      ranks.group.group.submit(engine::SubmitCommand{request_of(submitted++)});
    }
    while (accepted == -1) std::this_thread::yield();
    refused += accepted == 0 ? 1 : 0;  // one is under way
    while (ranks.group.balancer->view().in_progress) std::this_thread::yield();
    ASSERT_EQ(ranks.group.balancer->view().failed, 0u) << ranks.group.balancer->view().last_error;
  }
  ASSERT_TRUE(ranks.wait_for(submitted));
  EXPECT_GT(ranks.group.balancer->view().moves_done, int64_t(20 * rebalances));
  for (uint64_t id = 0; id < submitted; ++id) EXPECT_EQ(ranks.answer(id).tokens, wanted[id % 16]) << "request " << id;
  for (const engine::EngineSnapshot& rank : settled(ranks)) EXPECT_EQ(rank.leased_blocks, 0);
}

#ifdef TANDEM_LONG_REBALANCES
TEST(RankGroup, TokensAreThoseOfOneRankDuringAThousandRebalances) { run_under_rebalances(1000); }
#else
TEST(RankGroup, TokensAreThoseOfOneRankWhileExpertsMove) { run_under_rebalances(12); }

TEST(RankGroup, RequestsGoRoundAndWhereTheyAskTo) {
  RankGroup::Options options;
  options.num_ranks = 3;
  options.slots_per_rank = 11;
  RankGroup ranks(options);
  for (uint64_t id = 0; id < 6; ++id) ranks.group.group.submit(engine::SubmitCommand{request_of(id)});
  api::EngineRequest pinned = request_of(6);
  pinned.data_parallel_rank = 2;
  ranks.group.group.submit(engine::SubmitCommand{pinned});
  api::EngineRequest outside = request_of(7);
  outside.data_parallel_rank = 3;
  ranks.group.group.submit(engine::SubmitCommand{outside});
  ASSERT_TRUE(ranks.wait_for(8));
  EXPECT_EQ(ranks.answer(7).finish->message, "data_parallel_rank 3 is not in [0, 3)");
  EXPECT_EQ(ranks.answer(7).finish->status_code, 400);
  std::vector<uint64_t> computed;
  for (const engine::EngineSnapshot& rank : settled(ranks)) computed.push_back(rank.prompt_tokens_computed);
  const auto length = [](uint64_t id) { return uint64_t(prompt_of_text(id).size()); };
  EXPECT_EQ(computed,
            (std::vector<uint64_t>{length(0) + length(3), length(1) + length(4), length(2) + length(5) + length(6)}));
}

TEST(RankGroup, LoadDecidesWhereItIsAskedTo) {
  for (const auto balance : {engine::LoadBalance::kShortestQueue, engine::LoadBalance::kMinimumTokens}) {
    RankGroup::Options options;
    options.num_ranks = 2;
    options.slots_per_rank = 16;
    options.balance = balance;
    RankGroup ranks(options);
    // One long request on rank 0, short ones after it: by requests they alternate, by tokens all go to rank 1.
    api::EngineRequest first = greedy_request(0, std::vector<int32_t>(200, 7), 64);
    first.data_parallel_rank = 0;
    ranks.group.group.submit(engine::SubmitCommand{first});
    for (uint64_t id = 1; id <= 4; ++id) {
      ranks.group.group.submit(engine::SubmitCommand{greedy_request(id, std::vector<int32_t>(10, 9), 64)});
    }
    ASSERT_TRUE(ranks.wait_for(5));
    const uint64_t computed = settled(ranks)[1].prompt_tokens_computed;
    if (balance == engine::LoadBalance::kMinimumTokens) {
      EXPECT_EQ(computed, 40u);
    } else {
      EXPECT_TRUE(computed == 20 || computed == 30) << computed;  // a tie goes either way
    }
  }
}

TEST(RankGroup, ACancelFindsItsRankAndAStopAnswersEverything) {
  RankGroup::Options options;
  options.num_ranks = 2;
  options.slots_per_rank = 16;
  RankGroup ranks(options);
  for (uint64_t id = 0; id < 8; ++id) {
    ranks.group.group.submit(engine::SubmitCommand{greedy_request(id, std::vector<int32_t>(20, 7), 400)});
  }
  ranks.group.group.submit(engine::CancelCommand{{5}, engine::CancelReason::kAborted, ""});
  ASSERT_TRUE(ranks.wait_for(1));
  EXPECT_EQ(ranks.answer(5).finish->kind, api::FinishKind::kAbort);
  for (const auto& rank : ranks.group.ranks) rank->thread.request_stop();
  EXPECT_TRUE(ranks.wait_for(8));
  for (const auto& rank : ranks.group.ranks) rank->thread.join();  // they leave together, nobody waits for a minute
}
#endif

}  // namespace
}  // namespace tandem::testing
