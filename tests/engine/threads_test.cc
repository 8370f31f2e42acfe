// Engines as the server runs them: an engine thread each, a transfer thread each, submits and cancels from other
// threads.
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <thread>

#include "kv/local_fabric.h"
#include "tests/engine/engine_rig.h"

namespace tandem::testing {
namespace {

// Collects events from an engine thread; waits with a deadline.
class Inbox {
 public:
  void take(api::EngineEvent event) {
    std::lock_guard lock(mutex_);
    Answer& answer = answers_[event.id.value];
    answer.tokens.insert(answer.tokens.end(), event.tokens.begin(), event.tokens.end());
    if (event.finish) {
      EXPECT_FALSE(answer.finish.has_value());
      answer.finish = event.finish;
      finished_ += 1;
      changed_.notify_all();
    }
  }
  bool wait_for(size_t finished) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(60), [&] { return finished_ >= finished; });
  }
  Answer answer(uint64_t id) {
    std::lock_guard lock(mutex_);
    return answers_[id];
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, Answer> answers_;
  size_t finished_ = 0;
};

class ThreadedInstance {
 public:
  ThreadedInstance(const engine::EngineConfig& config, std::shared_ptr<kv::LocalFabric> fabric)
      : model_(Rig::kLayers, Rig::kVocab),
        storage_(device::Device::kCpu, fake_layout(Rig::kLayers, config.block_tokens, config.max_total_tokens)),
        workspace_(device::Device::kCpu, 1 << 20),
        pool_(1),
        communicators_(parallel::make_local_communicators(1, std::chrono::seconds(10))),
        port_(4096) {
    engine::EngineParts parts;
    parts.clock = &clock_;
    parts.model = &model_;
    parts.kernels.pool = &pool_;
    parts.kernels.workspace = &workspace_;
    parts.cache = &storage_;
    parts.transfer = &port_;
    parts.communicator = communicators_[0].get();
    parts.metrics = &metrics_;
    engine =
        std::move(*engine::Engine::create(config, parts, [this](api::EngineEvent e) { inbox.take(std::move(e)); }));
    kv::TransferOptions options;
    options.listen = config.role == engine::Role::kPrefill;
    options.host = options.listen ? "prefill" : "decode";
    options.port = options.listen ? 9000 : 0;
    options.epoch = config.epoch;
    const std::span region(static_cast<std::byte*>(storage_.base()), size_t(storage_.layout().total_bytes()));
    if (config.role != engine::Role::kCombined) {
      transfer_ = std::make_unique<kv::TransferThread>(kv::make_local_transfer(std::move(fabric), options, region),
                                                       port_, clock_, [this] { engine->wake(); });
    }
    thread_ = std::jthread([this](std::stop_token stop) { engine->run(stop); });
  }
  ~ThreadedInstance() {
    stop();
    transfer_.reset();
    EXPECT_EQ(model_.faults, 0);
  }
  // Until the pool is as at the start; the snapshot follows the last event by a turn.
  bool reaches_baseline() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (std::chrono::steady_clock::now() < deadline) {
      const engine::EngineSnapshot s = engine->snapshot();
      if (s.leased_blocks == 0 && s.running + s.queued + s.inflight == 0) return true;
      std::this_thread::yield();
    }
    return false;
  }

  void stop() {
    thread_.request_stop();
    if (thread_.joinable()) thread_.join();
  }

  Inbox inbox;
  std::unique_ptr<engine::Engine> engine;

 private:
  SystemClock clock_;
  FakeModel model_;
  kv::KvStorage storage_;
  device::Workspace workspace_;
  device::ThreadPool pool_;
  std::vector<std::unique_ptr<parallel::Communicator>> communicators_;
  profile::Metrics metrics_;
  kv::TransferPort port_;
  std::unique_ptr<kv::TransferThread> transfer_;
  std::jthread thread_;
};

TEST(EngineThreads, CombinedServesSubmitsFromManyThreads) {
  ThreadedInstance instance(small_config(), nullptr);
  {
    std::vector<std::jthread> clients;
    for (uint64_t c = 0; c < 4; ++c) {
      clients.emplace_back([&, c] {
        for (uint64_t i = 0; i < 10; ++i) {
          const uint64_t id = c * 10 + i;
          instance.engine->submit(engine::SubmitCommand{greedy_request(id, prompt_of(id, 12), 8)});
          if (id % 5 == 4)
            instance.engine->submit(engine::CancelCommand{{id}, engine::CancelReason::kDisconnected, ""});
        }
      });
    }
  }
  ASSERT_TRUE(instance.inbox.wait_for(40));
  for (uint64_t id = 0; id < 40; ++id) {
    const Answer answer = instance.inbox.answer(id);
    if (answer.finish->kind == api::FinishKind::kAbort) continue;
    EXPECT_EQ(answer.tokens, expected_tokens(prompt_of(id, 12), 8, Rig::kVocab));
  }
  EXPECT_TRUE(instance.reaches_baseline());
}

TEST(EngineThreads, StopAnswersWhatIsStillThere) {
  engine::EngineConfig config = small_config();
  config.max_running_requests = 2;
  ThreadedInstance instance(config, nullptr);
  for (uint64_t id = 0; id < 50; ++id) {
    instance.engine->submit(engine::SubmitCommand{greedy_request(id, prompt_of(id, 12), 100)});
  }
  ASSERT_TRUE(instance.inbox.wait_for(1));
  instance.stop();
  EXPECT_TRUE(instance.inbox.wait_for(50));
  EXPECT_EQ(instance.engine->snapshot().leased_blocks, 0);
  EXPECT_EQ(instance.engine->snapshot().queued, 0);
}

TEST(EngineThreads, StopEndsASleepOfAnHourAtOnce) {
  ThreadedInstance instance(small_config(), nullptr);
  instance.engine->submit(engine::SlowDownCommand{3600 * 1000});
  instance.engine->submit(engine::SubmitCommand{greedy_request(1, prompt_of(1, 12), 4)});
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!instance.engine->snapshot().asleep && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  EXPECT_TRUE(instance.engine->snapshot().asleep);
  instance.stop();
  EXPECT_TRUE(instance.inbox.wait_for(1));
  EXPECT_LT(std::chrono::steady_clock::now(), deadline);
  EXPECT_EQ(instance.inbox.answer(1).finish->status_code, 503);
  EXPECT_EQ(instance.engine->snapshot().leased_blocks, 0);
}

TEST(EngineThreads, PrefillAndDecodeOnTheirOwnThreadsServeTheSameTokens) {
  const auto fabric = kv::make_local_fabric();
  ThreadedInstance prefill(small_config(engine::Role::kPrefill), fabric);
  engine::EngineConfig decode_config = small_config(engine::Role::kDecode);
  decode_config.epoch = 9;
  ThreadedInstance decode(decode_config, fabric);
  for (uint64_t id = 0; id < 40; ++id) {
    auto request = greedy_request(id, prompt_of(id % 7, 10 + int32_t(id)), 8);
    request.bootstrap = api::BootstrapInfo{"prefill", uint16_t(9000), 100 + id};
    prefill.engine->submit(engine::SubmitCommand{request});
    decode.engine->submit(engine::SubmitCommand{request});
    if (id % 8 == 7) decode.engine->submit(engine::CancelCommand{{id}, engine::CancelReason::kAborted, ""});
  }
  ASSERT_TRUE(decode.inbox.wait_for(40));
  ASSERT_TRUE(prefill.inbox.wait_for(40));
  int served = 0;
  for (uint64_t id = 0; id < 40; ++id) {
    const Answer answer = decode.inbox.answer(id);
    if (answer.finish->kind == api::FinishKind::kAbort) continue;
    EXPECT_EQ(answer.tokens, expected_tokens(prompt_of(id % 7, 10 + int32_t(id)), 8, Rig::kVocab));
    served += 1;
  }
  EXPECT_GE(served, 35);
  EXPECT_TRUE(decode.reaches_baseline());
  EXPECT_TRUE(prefill.reaches_baseline());
  EXPECT_EQ(decode.engine->snapshot().prompt_tokens_computed, 0u);
}

}  // namespace
}  // namespace tandem::testing
