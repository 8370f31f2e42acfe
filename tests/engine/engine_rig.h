// One engine with what it borrows, driven by hand under a manual clock, and a log of its events per request.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "engine/engine.h"
#include "engine/plan_board.h"
#include "parallel/flight.h"
#include "tests/engine/fake_model.h"

namespace tandem::testing {

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<api::TokenLogprob> logprobs, input_logprobs;
  std::optional<api::FinishReason> finish;
  std::vector<api::RequestTimes> times;  // as often as they came
  int32_t cached_tokens = 0, prompt_tokens = 0, retractions = 0, events = 0;
};

inline engine::EngineConfig small_config(engine::Role role = engine::Role::kCombined) {
  engine::EngineConfig config;
  config.role = role;
  config.block_tokens = 4;
  config.max_total_tokens = 256;
  config.max_running_requests = 8;
  config.chunked_prefill_size = 32;
  config.max_prefill_tokens = 64;
  config.context_length = 128;
  config.num_reserved_decode_tokens = 16;
  config.digest_sample_rate = 1;
  config.epoch = 7;
  config.seed = 1;
  return config;
}

inline api::EngineRequest greedy_request(uint64_t id, std::vector<int32_t> prompt, int32_t max_new_tokens) {
  api::EngineRequest request;
  request.id = {id};
  request.rid = std::to_string(id);
  request.input_ids = std::move(prompt);
  request.sampling.edit().temperature = 0;
  request.sampling.edit().max_new_tokens = max_new_tokens;
  request.sampling.edit().ignore_eos = true;
  request.eos_token_ids = {1};
  return request;
}

class Rig {
 public:
  static constexpr int32_t kLayers = 3, kVocab = 97;

  explicit Rig(const engine::EngineConfig& config, kv::TransferPort* port = nullptr,
               ManualClock* shared_clock = nullptr, uint64_t fingerprint = 1,
               parallel::Communicator* communicator = nullptr, profile::FlightRecorder* flight = nullptr)
      : model(kLayers, kVocab, fingerprint),
        storage(device::Device::kCpu, fake_layout(kLayers, config.block_tokens, config.max_total_tokens)),
        workspace(device::Device::kCpu, 1 << 22),
        pool(1),
        communicators(parallel::make_local_communicators(config.attn_tp_size, std::chrono::seconds(10))),
        clock(shared_clock != nullptr ? *shared_clock : own_clock) {
    if (shared_clock == nullptr) own_clock.advance(std::chrono::seconds(1));
    if (flight != nullptr) communicators[0] = parallel::note_flight(std::move(communicators[0]), *flight);
    engine::EngineParts parts;
    parts.flight = flight;
    parts.clock = &clock;
    parts.model = &model;
    parts.kernels.backend = kernels::Backend::kRef;
    parts.kernels.pool = &pool;
    parts.kernels.workspace = &workspace;
    parts.cache = &storage;
    parts.transfer = port;
    parts.communicator = communicator != nullptr ? communicator : communicators[0].get();
    parts.metrics = &metrics;
    if (config.attn_tp_size > 1) parts.plans = &plans;
    auto made = engine::Engine::create(config, parts, [this](api::EngineEvent event) { take(std::move(event)); });
    EXPECT_TRUE(made.has_value()) << (made ? "" : made.error().message);
    engine = std::move(*made);
    for (int32_t i = 1; i < config.attn_tp_size; ++i) add_follower(config, parts, i);
  }

  void submit(api::EngineRequest request) {
    EXPECT_EQ(engine->submit(engine::SubmitCommand{std::move(request)}), PushResult::kPushed);
  }
  void cancel(uint64_t id, engine::CancelReason reason = engine::CancelReason::kAborted, std::string text = "") {
    EXPECT_EQ(engine->submit(engine::CancelCommand{{id}, reason, std::move(text)}), PushResult::kPushed);
  }
  // Turns until nothing moves any more.
  void run_until_idle(int max_turns = 100000) {
    for (int i = 0; i < max_turns; ++i) {
      if (!turn()) return;
    }
    ADD_FAILURE() << "still busy after " << max_turns << " turns";
  }
  bool turn() {
    clock_tick();
    return turn_engines();
  }
  // Of the attention group.
  bool turn_engines() {
    bool any = engine->turn();
    for (const auto& follower : followers) any |= follower->engine->turn();
    return any;
  }
  void clock_tick() { clock.advance(std::chrono::microseconds(100)); }

  void expect_baseline() {
    const engine::EngineSnapshot s = engine->snapshot();
    EXPECT_EQ(s.leased_blocks, 0);
    EXPECT_EQ(s.free_blocks + s.cached_blocks, s.total_blocks);
    EXPECT_EQ(s.running, 0);
    EXPECT_EQ(s.queued, 0);
    EXPECT_EQ(s.inflight, 0);
    EXPECT_EQ(model.faults, 0);
    for (const auto& follower : followers) {
      EXPECT_EQ(follower->model.forwards, model.forwards);
      EXPECT_EQ(follower->model.digest, model.digest) << "a follower ran something else than its leader";
    }
  }

  FakeModel model;
  kv::KvStorage storage;
  device::Workspace workspace;
  device::ThreadPool pool;
  std::vector<std::unique_ptr<parallel::Communicator>> communicators;
  profile::Metrics metrics;
  ManualClock own_clock;
  ManualClock& clock;
  std::map<uint64_t, Answer> answers;
  engine::PlanBoard plans;
  struct Follower {
    FakeModel model;
    std::unique_ptr<engine::Engine> engine;
  };
  std::unique_ptr<engine::Engine> engine;  // last: ends before what it borrows
  std::vector<std::unique_ptr<Follower>> followers;

 private:
  void add_follower(engine::EngineConfig config, engine::EngineParts parts, int32_t index) {
    Follower& follower =
        *followers.emplace_back(std::make_unique<Follower>(FakeModel(kLayers, kVocab, model.fingerprint()), nullptr));
    follower.model.follows = true;
    config.attn_tp_rank = index;
    parts.flight = nullptr;
    parts.model = &follower.model;
    parts.transfer = nullptr;
    parts.communicator = communicators[size_t(index)].get();
    auto made = engine::Engine::create(config, parts, [](const api::EngineEvent&) {});
    EXPECT_TRUE(made.has_value());
    follower.engine = std::move(*made);
  }

  void take(api::EngineEvent event) {
    Answer& answer = answers[event.id.value];
    EXPECT_FALSE(answer.finish.has_value()) << "event after the end of request " << event.id.value;
    answer.events += 1;
    answer.tokens.insert(answer.tokens.end(), event.tokens.begin(), event.tokens.end());
    answer.logprobs.insert(answer.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
    if (!event.input_logprobs.empty()) {
      EXPECT_TRUE(answer.input_logprobs.empty()) << "input log-probabilities come once";
      answer.input_logprobs = event.input_logprobs;
    }
    answer.cached_tokens = event.cached_tokens;
    answer.prompt_tokens = event.prompt_tokens;
    answer.retractions = event.total_retractions;
    if (event.times) answer.times.push_back(*event.times);
    answer.finish = event.finish;
  }
};

inline std::vector<int32_t> prompt_of(uint64_t seed, int32_t length, int32_t vocab_size = Rig::kVocab) {
  std::vector<int32_t> prompt;
  uint64_t state = seed * 7919 + 13;
  for (int32_t i = 0; i < length; ++i) {
    state = hash_step(state, i);
    prompt.push_back(token_of(state, vocab_size));
  }
  return prompt;
}

}  // namespace tandem::testing
