// A combined engine against the fake model's rule: same tokens however prompts are cut, cached, batched or retracted.
#include <gtest/gtest.h>

#include "tests/engine/engine_rig.h"

namespace tandem::testing {
namespace {

using api::FinishKind;

void expect_greedy(const Rig& rig, uint64_t id, const std::vector<int32_t>& prompt, int32_t count) {
  const Answer& answer = rig.answers.at(id);
  EXPECT_EQ(answer.tokens, expected_tokens(prompt, count, Rig::kVocab)) << "request " << id;
  ASSERT_TRUE(answer.finish.has_value());
  EXPECT_EQ(answer.finish->kind, FinishKind::kLength) << answer.finish->message;
  EXPECT_EQ(answer.finish->length, count);
}

TEST(CombinedEngine, ServesGreedyTokensOneByOne) {
  Rig rig(small_config());
  const auto prompt = prompt_of(1, 10);
  rig.submit(greedy_request(1, prompt, 20));
  rig.run_until_idle();
  expect_greedy(rig, 1, prompt, 20);
  EXPECT_EQ(rig.answers[1].events, 20);
  EXPECT_EQ(rig.answers[1].prompt_tokens, 10);
  rig.expect_baseline();
}

TEST(CombinedEngine, TokensDoNotDependOnChunkingCacheOrBatch) {
  for (const int32_t chunk : {0, 4, 8, 64}) {
    for (const bool cache : {false, true}) {
      for (const int32_t block : {1, 4}) {
        engine::EngineConfig config = small_config();
        config.chunked_prefill_size = chunk;
        config.radix_cache = cache;
        config.block_tokens = block;
        Rig rig(config);
        std::vector<std::vector<int32_t>> prompts;
        for (uint64_t id = 0; id < 12; ++id) {
          prompts.push_back(prompt_of(id % 5, 5 + int32_t(id) * 4));
          rig.submit(greedy_request(id, prompts.back(), 9));
        }
        rig.run_until_idle();
        for (uint64_t id = 0; id < 12; ++id) expect_greedy(rig, id, prompts[id], 9);
        rig.expect_baseline();
      }
    }
  }
}

TEST(CombinedEngine, SecondRequestFindsThePromptInTheCache) {
  Rig rig(small_config());
  const auto prompt = prompt_of(3, 40);
  rig.submit(greedy_request(1, prompt, 4));
  rig.run_until_idle();
  EXPECT_EQ(rig.answers[1].cached_tokens, 0);
  rig.submit(greedy_request(2, prompt, 4));
  rig.run_until_idle();
  expect_greedy(rig, 2, prompt, 4);
  EXPECT_EQ(rig.answers[2].cached_tokens, 36) << "whole blocks, and the last token is always computed";
  EXPECT_EQ(rig.engine->snapshot().prompt_tokens_computed, 40u + 4u);
}

TEST(CombinedEngine, StepsAreCountedByKindWithTheirTokensAndTime) {
  Rig rig(small_config());
  rig.submit(greedy_request(1, prompt_of(1, 20), 6));
  rig.submit(greedy_request(2, prompt_of(2, 20), 6));
  for (int i = 0; i < 100; ++i) {
    rig.clock.advance(std::chrono::milliseconds(10));
    rig.engine->turn();
  }
  const engine::EngineSnapshot seen = rig.engine->snapshot();
  EXPECT_EQ(seen.generated_tokens, 2u * 5u) << "the first tokens come from prefill steps";
  EXPECT_GE(seen.decode_steps, 5u);
  EXPECT_GE(seen.prefill_steps, 1u);
  EXPECT_EQ(seen.forward_steps, seen.decode_steps + seen.prefill_steps);
  // A turn of 10 ms each, and the waiting behind the last step is no step.
  EXPECT_LE(seen.decode_step_us + seen.prefill_step_us, 10'000u * seen.forward_steps);
  EXPECT_GE(seen.decode_step_us + seen.prefill_step_us, 10'000u * (seen.forward_steps - 1));
}

TEST(CombinedEngine, FlushEmptiesTheCacheOnlyWhenNothingIsPending) {
  Rig rig(small_config());
  rig.submit(greedy_request(1, prompt_of(1, 30), 5));
  std::vector<bool> done;
  const auto flush = [&] {
    rig.engine->submit(engine::FlushCacheCommand{[&](bool flushed) { done.push_back(flushed); }});
  };
  rig.turn();
  flush();
  rig.run_until_idle();
  flush();
  rig.run_until_idle();
  EXPECT_EQ(done, (std::vector<bool>{false, true}));
  EXPECT_EQ(rig.engine->snapshot().cached_blocks, 0);
  EXPECT_EQ(rig.engine->snapshot().free_blocks, rig.engine->snapshot().total_blocks);
}

TEST(CombinedEngine, FullPoolRetractsAndEveryRequestStillFinishes) {
  engine::EngineConfig config = small_config();
  config.max_total_tokens = 128;
  config.schedule_conservativeness = 0.05;  // over-commits heavily
  for (const bool cache : {false, true}) {
    config.radix_cache = cache;
    Rig rig(config);
    std::vector<std::vector<int32_t>> prompts;
    for (uint64_t id = 0; id < 20; ++id) {
      prompts.push_back(prompt_of(100 + id, 6));
      rig.submit(greedy_request(id, prompts.back(), 60));
    }
    rig.run_until_idle();
    int retractions = 0;
    for (uint64_t id = 0; id < 20; ++id) {
      expect_greedy(rig, id, prompts[id], 60);
      retractions += rig.answers[id].retractions;
    }
    EXPECT_GT(retractions, 0);
    rig.expect_baseline();
  }
}

TEST(CombinedEngine, EndOfSentenceStopsUnlessIgnoredAndMinNewTokensHoldsItBack) {
  // Find a prompt whose continuation meets some token early, and call that token the stop.
  const auto prompt = prompt_of(5, 8);
  const auto expected = expected_tokens(prompt, 12, Rig::kVocab);
  const int32_t stop = expected[3];
  Rig rig(small_config());
  auto request = greedy_request(1, prompt, 12);
  request.sampling.edit().ignore_eos = false;
  request.eos_token_ids = {stop};
  rig.submit(request);
  request.id = {2};
  request.eos_token_ids = {};
  request.sampling.edit().stop_token_ids = {stop};
  rig.submit(request);
  request.id = {3};
  request.sampling.edit().ignore_eos = true;
  rig.submit(request);
  request.id = {4};
  request.sampling.edit().ignore_eos = false;
  request.sampling.edit().min_new_tokens = 6;
  rig.submit(request);
  rig.run_until_idle();
  for (const uint64_t id : {1, 2}) {
    EXPECT_EQ(rig.answers[id].finish->kind, FinishKind::kStopToken);
    EXPECT_EQ(rig.answers[id].finish->matched_token, stop);
    EXPECT_EQ(rig.answers[id].tokens.size(), 4u) << "the matched token is part of the output";
  }
  EXPECT_EQ(rig.answers[3].tokens, expected);
  ASSERT_GE(rig.answers[4].tokens.size(), 6u);
  for (size_t i = 0; i < 6; ++i) EXPECT_NE(rig.answers[4].tokens[i], stop);
  rig.expect_baseline();
}

TEST(CombinedEngine, LengthsAreClippedToContextAndPool) {
  engine::EngineConfig config = small_config();
  Rig rig(config);
  rig.submit(greedy_request(1, prompt_of(1, 100), 1000));
  rig.submit(greedy_request(2, prompt_of(1, 123), 5));
  rig.submit(greedy_request(3, prompt_of(1, 10), 0));
  rig.run_until_idle();
  EXPECT_EQ(rig.answers[1].tokens.size(), 26u) << "context 128, minus 1, minus prompt 100, minus 1";
  EXPECT_EQ(rig.answers[2].finish->kind, FinishKind::kAbort);
  EXPECT_EQ(rig.answers[2].finish->status_code, 400);
  EXPECT_NE(rig.answers[2].finish->message.find("123"), std::string::npos);
  EXPECT_TRUE(rig.answers[3].tokens.empty());
  EXPECT_EQ(rig.answers[3].finish->length, 0);
  rig.expect_baseline();
}

TEST(CombinedEngine, NanLogitsAbortTheRequestAndKeepNothing) {
  Rig rig(small_config());
  rig.model.produces_nan = true;
  rig.submit(greedy_request(1, prompt_of(1, 10), 5));
  rig.run_until_idle();
  EXPECT_EQ(rig.answers[1].finish->kind, FinishKind::kAbort);
  EXPECT_EQ(rig.answers[1].finish->message, "NaN happened");
  rig.model.produces_nan = false;
  rig.submit(greedy_request(2, prompt_of(1, 10), 5));
  rig.run_until_idle();
  expect_greedy(rig, 2, prompt_of(1, 10), 5);
  rig.expect_baseline();
}

TEST(CombinedEngine, CancelEndsARequestInEveryState) {
  for (int turns = 0; turns < 12; ++turns) {
    engine::EngineConfig config = small_config();
    config.chunked_prefill_size = 8;
    Rig rig(config);
    rig.submit(greedy_request(1, prompt_of(1, 30), 5));
    rig.submit(greedy_request(2, prompt_of(2, 30), 5));
    for (int i = 0; i < turns; ++i) rig.turn();
    rig.cancel(1);
    rig.cancel(2, engine::CancelReason::kStopText, "stop here");
    rig.cancel(99);
    rig.run_until_idle();
    for (const uint64_t id : {1, 2}) ASSERT_TRUE(rig.answers[id].finish.has_value()) << "turns " << turns;
    if (turns == 0) {
      EXPECT_EQ(rig.answers[1].finish->message, "Abort in waiting queue");
      EXPECT_EQ(rig.answers[2].finish->matched_text, "stop here");
    }
    rig.expect_baseline();
  }
}

TEST(CombinedEngine, DrainFinishesWhatRunsAndRefusesWhatComes) {
  Rig rig(small_config());
  rig.submit(greedy_request(1, prompt_of(1, 30), 5));
  rig.turn();
  rig.engine->submit(engine::DrainCommand{});
  rig.submit(greedy_request(2, prompt_of(2, 30), 5));
  rig.run_until_idle();
  expect_greedy(rig, 1, prompt_of(1, 30), 5);
  EXPECT_EQ(rig.answers[2].finish->status_code, 503);
  EXPECT_TRUE(rig.engine->snapshot().draining);
}

TEST(CombinedEngine, QueueBeyondItsLimitAnswersFull) {
  engine::EngineConfig config = small_config();
  config.max_queued_requests = 2;
  Rig rig(config);
  for (uint64_t id = 0; id < 4; ++id) rig.submit(greedy_request(id, prompt_of(id, 8), 3));
  rig.run_until_idle();
  EXPECT_EQ(rig.answers[3].finish->status_code, 503);
  EXPECT_EQ(rig.answers[3].finish->message, "The request queue is full.");
  expect_greedy(rig, 1, prompt_of(1, 8), 3);
}

TEST(CombinedEngine, InputLogprobsCoverThePromptFromTheAskedPosition) {
  for (const int32_t chunk : {0, 8}) {
    engine::EngineConfig config = small_config();
    config.chunked_prefill_size = chunk;
    Rig rig(config);
    const auto prompt = prompt_of(4, 30);
    rig.submit(greedy_request(1, prompt, 2));
    rig.run_until_idle();
    auto request = greedy_request(2, prompt, 2);  // its prompt is cached now, but its logits are not
    request.return_logprob = true;
    request.logprob_start_len = 5;
    request.top_logprobs_num = 2;
    request.token_ids_logprob = {7, 11};
    rig.submit(request);
    rig.run_until_idle();
    const Answer& answer = rig.answers[2];
    EXPECT_EQ(answer.tokens, expected_tokens(prompt, 2, Rig::kVocab));
    ASSERT_EQ(answer.input_logprobs.size(), 25u);
    EXPECT_FALSE(answer.input_logprobs[0].present);
    for (size_t i = 0; i < 25; ++i) EXPECT_EQ(answer.input_logprobs[i].token, prompt[5 + i]);
    for (size_t i = 1; i < 25; ++i) {
      const auto before = std::span(prompt).first(5 + i);
      const int32_t best = expected_tokens(before, 1, Rig::kVocab)[0];
      ASSERT_EQ(answer.input_logprobs[i].top.size(), 2u);
      EXPECT_EQ(answer.input_logprobs[i].top[0].first, best);
      EXPECT_EQ(answer.input_logprobs[i].token_ids.size(), 2u);
      EXPECT_LE(answer.input_logprobs[i].logprob, answer.input_logprobs[i].top[0].second);
    }
    ASSERT_EQ(answer.logprobs.size(), 2u);
    EXPECT_EQ(answer.logprobs[0].token, answer.tokens[0]);
    EXPECT_EQ(answer.cached_tokens, 4);
    rig.expect_baseline();
  }
}

TEST(CombinedEngine, EveryPolicyServesEverybody) {
  using engine::SchedulePolicy;
  for (const auto policy : {SchedulePolicy::kFcfs, SchedulePolicy::kLpm, SchedulePolicy::kRandom,
                            SchedulePolicy::kDfsWeight, SchedulePolicy::kLof}) {
    engine::EngineConfig config = small_config();
    config.policy = policy;
    Rig rig(config);
    for (uint64_t id = 0; id < 30; ++id) rig.submit(greedy_request(id, prompt_of(id % 4, 20 + int32_t(id)), 3));
    rig.run_until_idle();
    for (uint64_t id = 0; id < 30; ++id) expect_greedy(rig, id, prompt_of(id % 4, 20 + int32_t(id)), 3);
    rig.expect_baseline();
  }
}

TEST(CombinedEngine, HealthProbeOfABusyRankIsDroppedButAnswered) {
  Rig rig(small_config());
  rig.submit(greedy_request(1, prompt_of(1, 8), 5));
  rig.turn();
  auto probe = greedy_request(2, {0}, 1);
  probe.is_health_check = true;
  rig.submit(probe);
  rig.turn();
  ASSERT_TRUE(rig.answers[2].finish.has_value());
  EXPECT_TRUE(rig.answers[2].tokens.empty());
  rig.run_until_idle();
  expect_greedy(rig, 1, prompt_of(1, 8), 5);
}

// Two ranks of one group, driven in turns on one thread.
struct TwoRanks {
  TwoRanks() : communicators(parallel::make_local_communicators(2, std::chrono::seconds(5))) {
    clock.advance(std::chrono::seconds(1));
    first = std::make_unique<Rig>(small_config(), nullptr, &clock, 1, communicators[0].get());
    second = std::make_unique<Rig>(small_config(), nullptr, &clock, 1, communicators[1].get());
  }
  ManualClock clock;
  std::vector<std::unique_ptr<parallel::Communicator>> communicators;
  std::unique_ptr<Rig> first, second;
};

TEST(RankGroup, IdleRankTakesPartInEveryStepOfTheOther) {
  TwoRanks ranks;
  const auto prompt = prompt_of(1, 40);
  ranks.first->submit(greedy_request(1, prompt, 10));
  for (int i = 0; i < 200; ++i) {
    ranks.first->turn();
    ranks.second->turn();
  }
  expect_greedy(*ranks.first, 1, prompt, 10);
  EXPECT_EQ(ranks.first->model.forwards, 2 + 9) << "two chunks and nine decode steps";
  EXPECT_EQ(ranks.second->model.forwards, ranks.first->model.forwards);
  EXPECT_EQ(ranks.second->engine->snapshot().prompt_tokens_computed, 0u);
  // Both at once, one still in its prompt while the other decodes.
  ranks.second->submit(greedy_request(2, prompt, 10));
  for (int i = 0; i < 3; ++i) {
    ranks.first->turn();
    ranks.second->turn();
  }
  ranks.first->submit(greedy_request(3, prompt_of(2, 60), 5));
  for (int i = 0; i < 200; ++i) {
    ranks.first->turn();
    ranks.second->turn();
  }
  expect_greedy(*ranks.second, 2, prompt, 10);
  expect_greedy(*ranks.first, 3, prompt_of(2, 60), 5);
  EXPECT_EQ(ranks.second->model.forwards, ranks.first->model.forwards);
  ranks.first->expect_baseline();
  ranks.second->expect_baseline();
}

TEST(RankGroup, CancelDuringAVoteTakesEffectAfterTheStep) {
  TwoRanks ranks;
  ranks.first->submit(greedy_request(1, prompt_of(1, 20), 10));
  ranks.first->turn();  // voted; the other has not
  EXPECT_EQ(ranks.first->model.forwards, 0);
  ranks.first->cancel(1);
  ranks.first->turn();
  EXPECT_FALSE(ranks.first->answers[1].finish.has_value()) << "its blocks are part of a posted step";
  for (int i = 0; i < 5; ++i) {
    ranks.second->turn();
    ranks.first->turn();
  }
  ASSERT_TRUE(ranks.first->answers[1].finish.has_value());
  EXPECT_EQ(ranks.first->answers[1].finish->kind, FinishKind::kAbort);
  EXPECT_EQ(ranks.first->model.forwards, 1);
  ranks.first->expect_baseline();
}

TEST(RankGroup, LostRankEndsEveryRequestByName) {
  TwoRanks ranks;
  ranks.first->submit(greedy_request(1, prompt_of(1, 20), 10));
  ranks.first->submit(greedy_request(2, prompt_of(2, 20), 10));
  ranks.first->turn();
  ranks.clock.advance(std::chrono::seconds(6));
  const TimePoint before = ranks.first->engine->snapshot().last_progress;
  ranks.first->turn();
  for (const uint64_t id : {1, 2}) {
    ASSERT_TRUE(ranks.first->answers[id].finish.has_value());
    EXPECT_EQ(ranks.first->answers[id].finish->status_code, 500);
    EXPECT_NE(ranks.first->answers[id].finish->message.find("rank"), std::string::npos)
        << ranks.first->answers[id].finish->message;
  }
  ranks.first->submit(greedy_request(3, prompt_of(2, 20), 10));
  ranks.first->turn();
  EXPECT_EQ(ranks.first->answers[3].finish->status_code, 503);
  EXPECT_EQ(ranks.first->engine->snapshot().last_progress, before) << "no progress, so health says no";
  ranks.first->expect_baseline();
}

}  // namespace
}  // namespace tandem::testing
