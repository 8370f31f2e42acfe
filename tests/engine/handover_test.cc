// Prefill and decode apart: the same tokens as combined, the bytes moved, and every way in which it can fail.
#include <gtest/gtest.h>

#include "tests/engine/pair_rig.h"

namespace tandem::testing {
namespace {

using api::FinishKind;

void expect_served(const Pair& pair, uint64_t id, const std::vector<int32_t>& prompt, int32_t count) {
  const auto expected = expected_tokens(prompt, count, Rig::kVocab);
  const Answer& decode = pair.decode->rig.answers.at(id);
  EXPECT_EQ(decode.tokens, expected) << "request " << id;
  ASSERT_TRUE(decode.finish.has_value());
  EXPECT_EQ(decode.finish->kind, FinishKind::kLength) << decode.finish->message;
  EXPECT_EQ(decode.finish->length, count);
  const Answer& prefill = pair.prefill->rig.answers.at(id);
  ASSERT_TRUE(prefill.finish.has_value());
  EXPECT_EQ(prefill.finish->kind, FinishKind::kLength) << prefill.finish->message;
  EXPECT_EQ(prefill.finish->length, 0);
  EXPECT_EQ(prefill.tokens, std::vector<int32_t>{expected[0]});
}

void expect_failed(const Answer& answer, const std::string& part) {
  ASSERT_TRUE(answer.finish.has_value());
  EXPECT_EQ(answer.finish->kind, FinishKind::kAbort);
  EXPECT_EQ(answer.finish->status_code, 500);
  EXPECT_NE(answer.finish->message.find(part), std::string::npos) << answer.finish->message;
}

// One more request through both sides: served, and everything is back afterwards.
void serve(Pair& pair, uint64_t id, const std::vector<int32_t>& prompt, int32_t count) {
  pair.submit(greedy_request(id, prompt, count), id);
  pair.run_until_idle();
  expect_served(pair, id, prompt, count);
  pair.expect_baseline();
}

PairOptions in_small_chunks() {
  PairOptions options;
  options.prefill.chunked_prefill_size = 8;
  return options;
}

TEST(Handover, DisaggregatedTokensEqualTheRuleAndBytesAreThePromptOnce) {
  Pair pair;
  const auto prompt = prompt_of(1, 30);
  pair.submit(greedy_request(1, prompt, 12), 77);
  pair.run_until_idle();
  expect_served(pair, 1, prompt, 12);
  EXPECT_EQ(pair.decode->hand->transfer().bytes_read(), uint64_t(30 * pair.token_bytes()));
  EXPECT_EQ(pair.decode->rig.engine->snapshot().handover_bytes, uint64_t(30 * pair.token_bytes()));
  EXPECT_EQ(pair.decode->rig.engine->snapshot().handovers, 1u);
  EXPECT_EQ(pair.prefill->rig.engine->snapshot().prompt_tokens_computed, 30u);
  EXPECT_EQ(pair.decode->rig.answers[1].events, 12);
  pair.expect_baseline();
}

TEST(Handover, TokensDoNotDependOnChunkingCacheBlocksOrBatch) {
  for (const int32_t chunk : {0, 4, 8, 64}) {
    for (const bool cache : {false, true}) {
      for (const int32_t block : {1, 4}) {
        PairOptions options;
        options.prefill.chunked_prefill_size = chunk;
        options.prefill.radix_cache = cache;
        options.prefill.block_tokens = options.decode.block_tokens = block;
        options.decode.max_total_tokens = 512;  // block numbers and offsets differ between the sides
        Pair pair(options);
        std::vector<std::vector<int32_t>> prompts;
        for (uint64_t id = 0; id < 12; ++id) {
          prompts.push_back(prompt_of(id % 5, 5 + int32_t(id) * 4));
          pair.submit(greedy_request(id, prompts.back(), 9), 1000 + id);
        }
        pair.run_until_idle();
        for (uint64_t id = 0; id < 12; ++id) expect_served(pair, id, prompts[id], 9);
        pair.expect_baseline();
      }
    }
  }
}

TEST(Handover, CachedPrefixIsHandedOverAndCounted) {
  Pair pair;
  const auto prompt = prompt_of(3, 42);
  pair.submit(greedy_request(1, prompt, 3), 1);
  pair.run_until_idle();
  serve(pair, 2, prompt, 3);
  EXPECT_EQ(pair.decode->rig.answers[2].cached_tokens, 40);
  EXPECT_EQ(pair.prefill->rig.answers[2].cached_tokens, 40);
  EXPECT_EQ(pair.prefill->rig.engine->snapshot().prompt_tokens_computed, 42u + 2u);
  EXPECT_EQ(pair.decode->hand->transfer().bytes_read(), uint64_t(84 * pair.token_bytes()));
  pair.expect_baseline();
}

TEST(Handover, NothingIsComputedBeforeDecodeAsked) {
  Pair pair;
  const auto prompt = prompt_of(1, 20);
  pair.prefill->rig.submit(Pair::with_room(greedy_request(1, prompt, 4), 5));
  pair.run_until_idle();
  EXPECT_EQ(pair.prefill->rig.model.forwards, 0);
  EXPECT_EQ(pair.prefill->rig.engine->snapshot().prealloc, 1);
  pair.decode->rig.submit(Pair::with_room(greedy_request(1, prompt, 4), 5));
  pair.run_until_idle();
  expect_served(pair, 1, prompt, 4);
  pair.expect_baseline();
}

TEST(Handover, DecodeMayAskBeforeTheRequestReachesPrefill) {
  Pair pair;
  const auto prompt = prompt_of(1, 20);
  pair.decode->rig.submit(Pair::with_room(greedy_request(1, prompt, 4), 5));
  pair.run_until_idle();
  EXPECT_EQ(pair.decode->rig.engine->snapshot().transferring, 1);
  pair.prefill->rig.submit(Pair::with_room(greedy_request(1, prompt, 4), 5));
  pair.run_until_idle();
  expect_served(pair, 1, prompt, 4);
  pair.expect_baseline();
}

TEST(Handover, OneTokenRequestAndZeroTokenRequestEndOnArrival) {
  Pair pair;
  const auto prompt = prompt_of(9, 11);
  pair.submit(greedy_request(1, prompt, 1), 1);
  pair.submit(greedy_request(2, prompt, 0), 2);
  pair.run_until_idle();
  expect_served(pair, 1, prompt, 1);
  EXPECT_TRUE(pair.decode->rig.answers[2].tokens.empty());
  EXPECT_EQ(pair.decode->rig.answers[2].finish->kind, FinishKind::kLength);
  EXPECT_EQ(pair.decode->rig.model.forwards, 0);
  pair.expect_baseline();
}

TEST(Handover, FirstTokenComesWithItsLogprobs) {
  Pair pair;
  auto request = greedy_request(1, prompt_of(2, 10), 3);
  request.return_logprob = true;
  request.top_logprobs_num = 3;
  request.token_ids_logprob = {5};
  pair.submit(request, 1);
  pair.run_until_idle();
  const Answer& answer = pair.decode->rig.answers[1];
  ASSERT_EQ(answer.logprobs.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(answer.logprobs[i].token, answer.tokens[i]);
    ASSERT_EQ(answer.logprobs[i].top.size(), 3u);
    EXPECT_EQ(answer.logprobs[i].top[0].first, answer.tokens[i]);
    EXPECT_EQ(answer.logprobs[i].token_ids.size(), 1u);
  }
}

TEST(Handover, FakeHostRunsBothSidesAlone) {
  Pair pair;
  auto request = greedy_request(1, {0, 1, 2, 3}, 8);
  request.bootstrap = api::BootstrapInfo{"2.2.2.2", std::nullopt, 0};
  pair.prefill->rig.submit(request);
  pair.decode->rig.submit(request);
  pair.run_until_idle();
  EXPECT_EQ(pair.prefill->rig.answers[1].tokens.size(), 1u);
  EXPECT_EQ(pair.prefill->rig.answers[1].finish->length, 0);
  EXPECT_EQ(pair.decode->rig.answers[1].tokens.size(), 8u);
  EXPECT_EQ(pair.decode->hand->transfer().bytes_read(), 0u);
}

TEST(Handover, FakeBackendNeedsNoBootstrapFields) {
  PairOptions options;
  options.prefill.fake_transfer = options.decode.fake_transfer = true;
  Pair pair(options);
  pair.prefill->rig.submit(greedy_request(1, {1, 2, 3}, 4));
  pair.decode->rig.submit(greedy_request(1, {1, 2, 3}, 4));
  pair.run_until_idle();
  EXPECT_EQ(pair.prefill->rig.answers[1].tokens.size(), 1u);
  EXPECT_EQ(pair.decode->rig.answers[1].tokens.size(), 4u);
}

TEST(Handover, RequestWithoutRoomIsA400OnBothSides) {
  Pair pair;
  pair.prefill->rig.submit(greedy_request(1, {1, 2, 3}, 4));
  pair.decode->rig.submit(greedy_request(1, {1, 2, 3}, 4));
  pair.run_until_idle();
  for (Instance* side : {pair.prefill.get(), pair.decode.get()}) {
    EXPECT_EQ(side->rig.answers[1].finish->status_code, 400);
    EXPECT_NE(side->rig.answers[1].finish->message.find("without boostrap room id"), std::string::npos);
  }
}

TEST(Handover, AbortOnEitherSideInEveryStateFreesBoth) {
  for (const bool on_prefill : {false, true}) {
    for (int turns = 0; turns < 16; ++turns) {
      Pair pair(in_small_chunks());
      const auto prompt = prompt_of(1, 30);
      pair.submit(greedy_request(1, prompt, 20), 1);
      for (int i = 0; i < turns; ++i) pair.turn();
      Rig& side = on_prefill ? pair.prefill->rig : pair.decode->rig;
      side.cancel(1);
      pair.run_until_idle();
      ASSERT_TRUE(pair.decode->rig.answers[1].finish.has_value()) << "turns " << turns;
      ASSERT_TRUE(pair.prefill->rig.answers[1].finish.has_value()) << "turns " << turns;
      pair.expect_baseline();
      // And the next request is served.
      serve(pair, 2, prompt, 5);
    }
  }
}

TEST(Handover, PrefillLostInEveryStateFailsWhatItHeldAndItsSuccessorServes) {
  for (int turns = 0; turns < 16; ++turns) {
    Pair pair(in_small_chunks());
    const auto prompt = prompt_of(1, 30);
    pair.submit(greedy_request(1, prompt, 20), 1);
    for (int i = 0; i < turns; ++i) pair.turn();
    pair.kill_prefill();
    pair.run_until_idle();
    ASSERT_TRUE(pair.decode->rig.answers[1].finish.has_value()) << "turns " << turns;
    pair.expect_baseline();
    pair.start_prefill();
    serve(pair, 2, prompt, 5);
  }
}

TEST(Handover, DecodeLostInEveryStateFreesPrefillAndItsSuccessorIsServed) {
  for (int turns = 1; turns < 16; ++turns) {
    PairOptions options = in_small_chunks();
    options.prefill.bootstrap_timeout = std::chrono::milliseconds(20);
    Pair pair(options);
    const auto prompt = prompt_of(1, 30);
    pair.submit(greedy_request(1, prompt, 20), 1);
    for (int i = 0; i < turns; ++i) pair.turn();
    pair.kill_decode();
    pair.run_until_idle();
    pair.clock.advance(std::chrono::milliseconds(50));
    pair.run_until_idle();
    ASSERT_TRUE(pair.prefill->rig.answers[1].finish.has_value()) << "turns " << turns;
    pair.expect_baseline();
    pair.start_decode();
    serve(pair, 2, prompt, 5);
  }
}

TEST(Handover, BlocksOfAReadInFlightStayLeasedUntilItEnds) {
  Pair pair;
  pair.fabric->hold_reads(pair.decode->address(), true);
  pair.submit(greedy_request(1, prompt_of(1, 30), 20), 1);
  pair.run_until_idle();
  pair.decode->rig.cancel(1);
  // The request ends at once, its blocks do not while the cancelled read has not been reported.
  pair.decode->rig.engine->turn();
  ASSERT_TRUE(pair.decode->rig.answers[1].finish.has_value());
  EXPECT_EQ(pair.decode->rig.engine->snapshot().leased_blocks, 8);
  pair.run_until_idle();
  pair.expect_baseline();
}

TEST(Handover, FailedReadFailsTheRequestOnly) {
  Pair pair;
  pair.fabric->fail_reads(pair.decode->address(), 1);
  const auto prompt = prompt_of(1, 30);
  pair.submit(greedy_request(1, prompt, 5), 1);
  pair.run_until_idle();
  expect_failed(pair.decode->rig.answers[1], "reading the prompt's cache failed");
  expect_failed(pair.prefill->rig.answers[1], "decode gave up");
  serve(pair, 2, prompt, 5);
}

TEST(Handover, DamagedBytesAreCaughtByTheDigest) {
  Pair pair;
  pair.fabric->hold_reads(pair.decode->address(), true);
  pair.submit(greedy_request(1, prompt_of(1, 30), 5), 1);
  pair.run_until_idle();
  pair.fabric->hold_reads(pair.decode->address(), false);
  // Damage one byte of decode's copy between the last read and the confirmation.
  for (int i = 0; i < 200 && pair.decode->hand->transfer().bytes_read() == 0; ++i) {
    pair.decode->hand->pump(pair.clock.now());
  }
  static_cast<char*>(pair.decode->rig.storage.layer_base(1))[0] ^= 1;
  pair.run_until_idle();
  expect_failed(pair.decode->rig.answers[1], "digest");
  EXPECT_TRUE(pair.decode->rig.answers[1].tokens.empty()) << "nothing of it was streamed";
  EXPECT_NE(pair.decode->rig.metrics.scrape().find("tandem:handover_digest_mismatches_total"), std::string::npos);
  pair.expect_baseline();
}

TEST(Handover, MismatchedSidesRefuseByName) {
  struct Case {
    std::string word;
    std::function<void(PairOptions&)> change;
  };
  const std::vector<Case> cases = {
      {"model fingerprint differs: prefill has 1, decode has 2", [](PairOptions& o) { o.decode_fingerprint = 2; }},
      {"page size differs: prefill has 4, decode has 8", [](PairOptions& o) { o.decode.block_tokens = 8; }},
  };
  for (const Case& c : cases) {
    PairOptions options;
    c.change(options);
    options.prefill.bootstrap_timeout = std::chrono::milliseconds(20);
    Pair pair(options);
    pair.submit(greedy_request(1, prompt_of(1, 16), 5), 1);
    pair.run_until_idle();
    expect_failed(pair.decode->rig.answers[1], c.word);
    pair.clock.advance(std::chrono::milliseconds(50));
    pair.run_until_idle();
    expect_failed(pair.prefill->rig.answers[1], "timed out");
    pair.expect_baseline();
  }
}

TEST(Handover, DifferentPromptsInOneRoomAreRefused) {
  Pair pair;
  pair.prefill->rig.submit(Pair::with_room(greedy_request(1, prompt_of(1, 20), 4), 5));
  pair.decode->rig.submit(Pair::with_room(greedy_request(1, prompt_of(2, 20), 4), 5));
  pair.run_until_idle();
  expect_failed(pair.decode->rig.answers[1], "prompt differs");
  // The right decode request may still come.
  pair.decode->rig.submit(Pair::with_room(greedy_request(2, prompt_of(1, 20), 4), 5));
  pair.run_until_idle();
  EXPECT_EQ(pair.decode->rig.answers[2].tokens, expected_tokens(prompt_of(1, 20), 4, Rig::kVocab));
  pair.expect_baseline();
}

TEST(Handover, RoomInUseIsRefusedOnBothSides) {
  Pair pair;
  const auto prompt = prompt_of(1, 20);
  pair.submit(greedy_request(1, prompt, 10), 5);
  pair.submit(greedy_request(2, prompt, 10), 5);
  pair.run_until_idle();
  expect_served(pair, 1, prompt, 10);
  EXPECT_EQ(pair.prefill->rig.answers[2].finish->status_code, 400);
  EXPECT_EQ(pair.decode->rig.answers[2].finish->status_code, 400);
  // Free again afterwards.
  pair.submit(greedy_request(3, prompt, 10), 5);
  pair.run_until_idle();
  expect_served(pair, 3, prompt, 10);
  pair.expect_baseline();
}

TEST(Handover, NobodyAtTheAddressFailsByName) {
  Pair pair;
  auto request = greedy_request(1, prompt_of(1, 10), 4);
  request.bootstrap = api::BootstrapInfo{"nowhere", 1, 5};
  pair.decode->rig.submit(request);
  pair.run_until_idle();
  expect_failed(pair.decode->rig.answers[1], "Could not fetch prefill parallel info from bootstrap_addr nowhere:1");
  pair.expect_baseline();
}

// The decode pool holds one of two prompts, for longer than prefill waits to be asked.
void let_one_wait(Pair& pair) {
  EXPECT_EQ(pair.decode->rig.engine->submit(engine::HoldCommand{1, 8, std::chrono::seconds(900)}), PushResult::kPushed);
  for (const uint64_t id : {1, 2}) pair.submit(greedy_request(id, prompt_of(id, 40), 8), id);
  for (int second = 0; second < 60; ++second) {
    pair.clock.advance(std::chrono::seconds(1));
    pair.run_until_idle();
  }
  EXPECT_EQ(pair.decode->rig.engine->snapshot().prealloc, 1);
  EXPECT_EQ(pair.prefill->rig.engine->snapshot().prealloc, 1);
  EXPECT_FALSE(pair.prefill->rig.answers[2].finish.has_value());
}

PairOptions with_room_for_one() {
  PairOptions options;
  options.decode.max_total_tokens = 64;
  options.prefill.bootstrap_timeout = std::chrono::seconds(20);
  return options;
}

TEST(Handover, WhatWaitsForDecodesMemoryIsNotLate) {
  Pair pair(with_room_for_one());
  let_one_wait(pair);
  EXPECT_EQ(pair.decode->rig.engine->submit(engine::HoldCommand{2, 0, {}}), PushResult::kPushed);
  pair.run_until_idle();
  for (const uint64_t id : {1, 2}) expect_served(pair, id, prompt_of(id, 40), 8);
  pair.expect_baseline();
}

TEST(Handover, WhatWaitedAtADecodeThatDiedIsLateInTheEnd) {
  Pair pair(with_room_for_one());
  let_one_wait(pair);
  pair.kill_decode();
  pair.clock.advance(std::chrono::seconds(21));
  pair.run_until_idle();
  expect_failed(pair.prefill->rig.answers[2], "KVPoll.Bootstrapping");
  pair.expect_baseline();
}

TEST(Handover, DeadlinesEndWhatTheOtherSideNeverAnswers) {
  PairOptions options;
  options.prefill.bootstrap_timeout = std::chrono::seconds(2);
  options.decode.waiting_timeout = std::chrono::seconds(3);
  options.prefill.source_lease_timeout = std::chrono::seconds(4);
  {
    Pair pair(options);  // decode never asks
    pair.prefill->rig.submit(Pair::with_room(greedy_request(1, prompt_of(1, 10), 4), 5));
    pair.run_until_idle();
    pair.clock.advance(std::chrono::seconds(3));
    pair.run_until_idle();
    expect_failed(pair.prefill->rig.answers[1], "KVPoll.Bootstrapping");
    pair.expect_baseline();
  }
  {
    Pair pair(options);  // the request never reaches prefill
    pair.decode->rig.submit(Pair::with_room(greedy_request(1, prompt_of(1, 10), 4), 5));
    pair.run_until_idle();
    pair.clock.advance(std::chrono::seconds(4));
    pair.run_until_idle();
    ASSERT_TRUE(pair.decode->rig.answers[1].finish.has_value());
    EXPECT_EQ(pair.decode->rig.answers[1].finish->status_code, 500);
    pair.expect_baseline();
  }
  {
    Pair pair(options);  // reads hang: prefill's lease ends, and a late confirmation finds nothing
    pair.fabric->hold_reads(pair.decode->address(), true);
    pair.submit(greedy_request(1, prompt_of(1, 10), 4), 5);
    pair.run_until_idle();
    pair.clock.advance(std::chrono::seconds(5));
    pair.run_until_idle();
    ASSERT_TRUE(pair.prefill->rig.answers[1].finish.has_value());
    EXPECT_EQ(pair.prefill->rig.answers[1].finish->status_code, 500);
    EXPECT_EQ(pair.decode->rig.answers[1].finish->status_code, 500);
    pair.fabric->hold_reads(pair.decode->address(), false);
    pair.run_until_idle();
    pair.expect_baseline();
  }
}

TEST(Handover, FullDecodePoolParksRequestsAndTheyGoOnWithTheSameTokens) {
  PairOptions options;
  options.decode.max_total_tokens = 128;
  options.decode.num_reserved_decode_tokens = 4;  // over-commits heavily
  Pair pair(options);
  std::vector<std::vector<int32_t>> prompts;
  for (uint64_t id = 0; id < 20; ++id) {
    prompts.push_back(prompt_of(100 + id, 6 + int32_t(id % 4)));
    pair.submit(greedy_request(id, prompts.back(), 60), 500 + id);
  }
  pair.run_until_idle();
  int retractions = 0;
  for (uint64_t id = 0; id < 20; ++id) {
    expect_served(pair, id, prompts[id], 60);
    retractions += pair.decode->rig.answers[id].retractions;
  }
  EXPECT_GT(retractions, 0);
  pair.expect_baseline();
}

TEST(Handover, ReserveAboveThePoolDoesNotLockOutTheOnlyRequest) {
  PairOptions options;
  options.decode.max_total_tokens = 64;
  options.decode.num_reserved_decode_tokens = 512;
  options.decode.context_length = 64;
  Pair pair(options);
  const auto prompt = prompt_of(1, 40);
  pair.submit(greedy_request(1, prompt, 20), 1);
  pair.submit(greedy_request(2, prompt, 20), 2);
  pair.run_until_idle();
  expect_served(pair, 1, prompt, 20);
  expect_served(pair, 2, prompt, 20);
  pair.expect_baseline();
}

}  // namespace
}  // namespace tandem::testing
