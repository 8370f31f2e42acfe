// Prefill and decode apart where either side's ranks share their requests: leaders hand over, followers run what their
// leader runs. One thread, manual clock; the fake model notices every wrong row, and its digest every other batch.
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "tests/engine/pair_rig.h"

namespace tandem::testing {
namespace {

PairOptions sizes(int32_t prefill, int32_t decode) {
  PairOptions options;
  options.prefill.attn_tp_size = prefill;
  options.decode.attn_tp_size = decode;
  return options;
}

void expect_tokens(Pair& pair, uint64_t id, const std::vector<int32_t>& prompt, int32_t count) {
  const Answer& answer = pair.decode->rig.answers[id];
  ASSERT_TRUE(answer.finish.has_value()) << id;
  EXPECT_EQ(answer.finish->kind, api::FinishKind::kLength) << answer.finish->message;
  EXPECT_EQ(answer.tokens, expected_tokens(prompt, count, Rig::kVocab)) << id;
}

TEST(AttentionTpPair, GroupsOfAnySizesHandOver) {
  for (const auto& [prefill, decode] : {std::pair{2, 1}, std::pair{1, 2}, std::pair{2, 4}, std::pair{4, 2}}) {
    Pair pair(sizes(prefill, decode));
    for (uint64_t id = 0; id < 12; ++id) pair.submit(greedy_request(id, prompt_of(id, 5 + int32_t(id) * 7), 9), id);
    pair.run_until_idle();
    for (uint64_t id = 0; id < 12; ++id) expect_tokens(pair, id, prompt_of(id, 5 + int32_t(id) * 7), 9);
    pair.expect_baseline();
  }
}

// The plans cross threads, written while followers may still run the step before.
TEST(AttentionTpPair, EveryRankOnAThreadOfItsOwn) {
  engine::EngineConfig config = small_config();
  config.attn_tp_size = 3;
  config.radix_cache = false;
  Rig rig(config);
  uint64_t prompt_tokens = 0;
  for (uint64_t id = 0; id < 30; ++id) {
    const std::vector<int32_t> prompt = prompt_of(id, 4 + int32_t(id) * 2);
    prompt_tokens += prompt.size();
    rig.submit(greedy_request(id, prompt, 20));
  }
  std::vector<std::jthread> threads;
  const auto run = [&](engine::Engine& engine) {
    threads.emplace_back([&engine](std::stop_token stop) { engine.run(stop); });
  };
  run(*rig.engine);
  for (const auto& follower : rig.followers) run(*follower->engine);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  for (;;) {
    const engine::EngineSnapshot now = rig.engine->snapshot();
    if (now.prompt_tokens_computed >= prompt_tokens && now.running + now.queued == 0) break;
    ASSERT_LT(std::chrono::steady_clock::now(), deadline);
    std::this_thread::yield();
  }
  for (std::jthread& thread : threads) thread.request_stop();
  threads.clear();
  for (uint64_t id = 0; id < 30; ++id) {
    EXPECT_EQ(rig.answers[id].tokens, expected_tokens(prompt_of(id, 4 + int32_t(id) * 2), 20, Rig::kVocab)) << id;
  }
  rig.expect_baseline();
}

TEST(AttentionTpPair, AFullDecodeCacheRetracts) {
  PairOptions options = sizes(2, 2);
  options.decode.max_total_tokens = 96;
  options.decode.num_reserved_decode_tokens = 0;
  Pair pair(options);
  for (uint64_t id = 0; id < 6; ++id) pair.submit(greedy_request(id, prompt_of(id, 12), 40), id);
  pair.run_until_idle();
  int32_t retractions = 0;
  for (uint64_t id = 0; id < 6; ++id) {
    expect_tokens(pair, id, prompt_of(id, 12), 40);
    retractions += pair.decode->rig.answers[id].retractions;
  }
  EXPECT_GT(retractions, 0);
  pair.expect_baseline();
}

TEST(AttentionTpPair, CancelsAtAnyTimeLeaveTheOthersAlone) {
  std::mt19937 random(11);
  Pair pair(sizes(2, 2));
  for (uint64_t id = 0; id < 40; ++id) {
    pair.submit(greedy_request(id, prompt_of(id, 3 + int32_t(random() % 60)), 8), id);
    for (uint32_t i = random() % 30; i > 0; --i) pair.turn();
    if (id % 3 != 0) continue;
    if (random() % 2 == 0) pair.prefill->rig.cancel(id);
    pair.decode->rig.cancel(id);
  }
  pair.run_until_idle();
  // Where only decode was told, prefill notices by its own deadlines.
  pair.clock.advance(std::chrono::seconds(700));
  pair.run_until_idle();
  for (uint64_t id = 0; id < 40; ++id) {
    ASSERT_TRUE(pair.decode->rig.answers[id].finish.has_value()) << id;
    if (id % 3 == 0) continue;
    EXPECT_EQ(pair.decode->rig.answers[id].tokens.size(), 8u) << id;
  }
  pair.expect_baseline();
}

}  // namespace
}  // namespace tandem::testing
