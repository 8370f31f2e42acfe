// Ranks that share their requests: tokens are those of one rank, and a group goes through everything that one goes
// through: chunks, cached prefixes, retraction, cancels, moving experts, its end.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "base/json.h"
#include "tests/engine/rank_group_rig.h"

namespace tandem::testing {
namespace {

// Of every second one the first 32 tokens are the same; some are longer than a chunk.
std::vector<int32_t> prompt_of_text(uint64_t id) {
  std::mt19937 random(id % 2 == 0 ? 1 : uint32_t(id));
  std::vector<int32_t> prompt{0};
  for (size_t i = 0; i < 35 + id * 11; ++i) {
    if (i == 32) random.seed(uint32_t(id));
    prompt.push_back(int32_t(3 + random() % 8000));
  }
  return prompt;
}

constexpr uint64_t kRequests = 12;
api::EngineRequest request_of(uint64_t id) { return greedy_request(id, prompt_of_text(id % kRequests), 24); }

RankGroup::Options split(int32_t num_ranks, int32_t attn_tp_size) {
  RankGroup::Options options;
  options.num_ranks = num_ranks;
  options.slots_per_rank = 32 / num_ranks;
  options.attn_tp_size = attn_tp_size;
  return options;
}

// One round after the other.
std::vector<std::vector<int32_t>> tokens_of(RankGroup& ranks, uint64_t rounds) {
  std::vector<std::vector<int32_t>> tokens;
  for (uint64_t first = 0; first < rounds * kRequests; first += kRequests) {
    for (uint64_t id = first; id < first + kRequests; ++id) {
      ranks.group.group.submit(engine::SubmitCommand{request_of(id)});
    }
    EXPECT_TRUE(ranks.wait_for(first + kRequests));
    for (uint64_t id = first; id < first + kRequests; ++id) tokens.push_back(ranks.answer(id).tokens);
  }
  return tokens;
}

const std::vector<std::vector<int32_t>>& tokens_of_one_rank() {
  static const auto tokens = [] {
    RankGroup alone({});
    return tokens_of(alone, 1);
  }();
  return tokens;
}

// Followers go through the same steps as leaders, and nothing is held at the end.
void expect_baseline(RankGroup& ranks) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  engine::EngineSnapshot sum = ranks.group.group.snapshot();
  while (sum.leased_blocks > 0 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
    sum = ranks.group.group.snapshot();
  }
  EXPECT_EQ(sum.leased_blocks, 0);
  EXPECT_EQ(sum.free_blocks + sum.cached_blocks, sum.total_blocks);
  for (const auto& rank : ranks.group.ranks) rank->thread.request_stop();
  for (const auto& rank : ranks.group.ranks) rank->thread.join();
  const uint64_t steps = ranks.group.ranks[0]->engine->snapshot().forward_steps;
  for (const auto& rank : ranks.group.ranks) EXPECT_EQ(rank->engine->snapshot().forward_steps, steps);
}

TEST(AttentionTp, TokensAreThoseOfOneRank) {
  for (const auto& [num_ranks, attn_tp_size] : {std::pair{2, 2}, std::pair{4, 4}, std::pair{4, 2}}) {
    RankGroup ranks(split(num_ranks, attn_tp_size));
    EXPECT_TRUE(tokens_of(ranks, 1) == tokens_of_one_rank()) << num_ranks << " ranks, groups of " << attn_tp_size;
    expect_baseline(ranks);
  }
}

TEST(AttentionTp, TokensAreThoseOfOneRankInTwoBatchesAndFromCachedPrefixes) {
  RankGroup::Options options = split(4, 2);
  options.two_batches = true;
  RankGroup ranks(options);
  const auto tokens = tokens_of(ranks, 2);
  int32_t cached = 0;
  for (uint64_t id = 0; id < tokens.size(); ++id) {
    EXPECT_EQ(tokens[id], tokens_of_one_rank()[id % kRequests]) << "request " << id;
    cached += ranks.answer(id).cached_tokens;
  }
  EXPECT_GT(cached, 0);
  expect_baseline(ranks);
}

TEST(AttentionTp, AFullCacheRetracts) {
  RankGroup::Options options = split(2, 2);
  options.max_total_tokens = 512;
  options.conservativeness = 0;
  RankGroup ranks(options);
  EXPECT_TRUE(tokens_of(ranks, 1) == tokens_of_one_rank());
  int32_t retractions = 0;
  for (uint64_t id = 0; id < kRequests; ++id) retractions += ranks.answer(id).retractions;
  EXPECT_GT(retractions, 0);
  expect_baseline(ranks);
}

TEST(AttentionTp, CancelsLeaveTheOthersAlone) {
  RankGroup ranks(split(4, 2));
  std::mt19937 random(3);
  for (uint64_t id = 0; id < 2 * kRequests; ++id) {
    ranks.group.group.submit(engine::SubmitCommand{request_of(id)});
    if (id % 2 == 1) ranks.wait_for(id / 3);
    const uint64_t victim = id - random() % std::min<uint64_t>(id + 1, 4);
    if (victim % 4 == 3) {
      ranks.group.group.submit(engine::CancelCommand{{victim}, engine::CancelReason::kAborted, ""});
    }
  }
  ASSERT_TRUE(ranks.wait_for(2 * kRequests));
  for (uint64_t id = 0; id < 2 * kRequests; ++id) {
    const std::vector<int32_t>& wanted = tokens_of_one_rank()[id % kRequests];
    const Answer answer = ranks.answer(id);
    ASSERT_LE(answer.tokens.size(), wanted.size());
    EXPECT_TRUE(std::equal(answer.tokens.begin(), answer.tokens.end(), wanted.begin())) << "request " << id;
    if (id % 4 != 3) {
      EXPECT_EQ(answer.tokens.size(), wanted.size());
    }
  }
  expect_baseline(ranks);
}

TEST(AttentionTp, ExpertsMoveUnderTheGroup) {
  RankGroup::Options options = split(4, 2);
  options.slots_per_rank = 10;
  options.num_spares = 3;
  options.balancer.layers_per_version = 2;
  RankGroup ranks(options);
  json::Array layers;
  std::mt19937 random(9);
  for (int32_t layer = 0; layer < 6; ++layer) {
    std::vector<int32_t> row;
    for (int32_t slot = 0; slot < 40; ++slot) row.push_back(slot < 32 ? slot : int32_t(random() % 32));
    std::shuffle(row.begin(), row.end(), random);
    layers.push_back(json::Array(row.begin(), row.end()));
  }
  json::Object placement;
  placement["physical_to_logical_map"] = std::move(layers);
  std::atomic<bool> accepted{false};
  ranks.group.balancer->rebalance("", json::dump(placement),
                                  [&](Result<engine::RebalanceReply> reply) { accepted = reply.has_value(); });
  uint64_t submitted = 0;
  while (ranks.group.balancer->view().epoch < 1) {
    if (submitted < 32 * kRequests && (submitted < 16 || ranks.wait_for(submitted - 12))) {
      ranks.group.group.submit(engine::SubmitCommand{request_of(submitted++)});
    }
    ASSERT_EQ(ranks.group.balancer->view().failed, 0u) << ranks.group.balancer->view().last_error;
  }
  EXPECT_TRUE(accepted);
  ASSERT_TRUE(ranks.wait_for(submitted));
  for (uint64_t id = 0; id < submitted; ++id) {
    EXPECT_EQ(ranks.answer(id).tokens, tokens_of_one_rank()[id % kRequests]) << "request " << id;
  }
  expect_baseline(ranks);
}

TEST(AttentionTp, AStopUnderLoadAnswersEverything) {
  RankGroup ranks(split(4, 2));
  for (uint64_t id = 0; id < 8; ++id) {
    ranks.group.group.submit(engine::SubmitCommand{greedy_request(id, std::vector<int32_t>(20, 7), 400)});
  }
  api::EngineRequest first = greedy_request(8, std::vector<int32_t>(20, 7), 1);
  ranks.group.group.submit(engine::SubmitCommand{first});
  ASSERT_TRUE(ranks.wait_for(1));
  for (const auto& rank : ranks.group.ranks) rank->thread.request_stop();
  EXPECT_TRUE(ranks.wait_for(9));
  for (const auto& rank : ranks.group.ranks) rank->thread.join();  // they leave together, nobody waits for a minute
  for (const auto& rank : ranks.group.ranks) EXPECT_FALSE(rank->engine->snapshot().lost);
}

TEST(AttentionTp, AFollowerTakesNoRequests) {
  RankGroup ranks(split(2, 2));
  ranks.group.ranks[1]->engine->submit(engine::SubmitCommand{request_of(1)});
  ASSERT_TRUE(ranks.wait_for(1));
  EXPECT_EQ(ranks.answer(1).finish->message, "This rank takes no requests of its own.");
}

}  // namespace
}  // namespace tandem::testing
