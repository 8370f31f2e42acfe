// The trained model on several ranks as the server runs it: an engine thread per rank, one group, one balancer thread.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "engine/expert_balancer.h"
#include "engine/expert_port.h"
#include "engine/group.h"
#include "profile/span.h"
#include "profile/trace_writer.h"
#include "tests/engine/engine_rig.h"
#include "tests/model/model_runner.h"

namespace tandem::testing {

class RankGroup {
 public:
  struct Options {
    int32_t num_ranks = 1, slots_per_rank = 32, num_spares = 0;
    engine::LoadBalance balance = engine::LoadBalance::kRoundRobin;
    engine::ExpertBalancerConfig balancer = {};
    bool two_batches = false;
  };

  explicit RankGroup(const Options& options)
      : group([this](api::EngineEvent event) { take(std::move(event)); }, options) {}

 private:
  struct Rank;

 public:
  // Answers by request id; blocks until `count` requests have ended, a minute at most.
  bool wait_for(size_t count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(120), [&] { return ended_ >= count; });
  }
  Answer answer(uint64_t id) {
    std::lock_guard lock(mutex_);
    return answers_[id];
  }

 private:
  void take(api::EngineEvent event) {
    std::lock_guard lock(mutex_);
    Answer& answer = answers_[event.id.value];
    answer.tokens.insert(answer.tokens.end(), event.tokens.begin(), event.tokens.end());
    if (!event.finish) return;
    EXPECT_FALSE(answer.finish.has_value());
    answer.finish = event.finish;
    ended_ += 1;
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, Answer> answers_;
  size_t ended_ = 0;

  // Ranks, their threads and the group; last, so that they end before what their events need.
  struct Members {
    Members(std::function<void(api::EngineEvent)> sink, const Options& options);
    ~Members();
    SystemClock clock;
    profile::Metrics metrics;
    profile::TraceWriter traces{clock};
    engine::EngineGroup group;
    std::vector<std::unique_ptr<Rank>> ranks;
    std::unique_ptr<engine::ExpertBalancer> balancer;
    std::jthread balancer_thread;
  };

 public:
  Members group;
};

struct RankGroup::Rank {
  std::unique_ptr<profile::Recorder> spans;
  std::unique_ptr<model::Model> model;
  std::unique_ptr<engine::ExpertPort> experts;
  std::optional<kv::KvStorage> cache;
  device::Workspace workspace{device::Device::kCpu, 64 << 20};
  device::ThreadPool pool{1};
  std::unique_ptr<parallel::Communicator> communicator;
  std::unique_ptr<engine::Engine> engine;
  std::jthread thread;
};

inline engine::EngineConfig group_config(const RankGroup::Options& options) {
  engine::EngineConfig config;
  config.block_tokens = 16;
  config.max_total_tokens = 4096;
  config.max_running_requests = 16;
  config.chunked_prefill_size = 64;
  config.max_prefill_tokens = 64;
  config.context_length = 512;
  config.max_low_latency_tokens = 16;
  config.two_batch_overlap = options.two_batches;
  return config;
}

inline RankGroup::Members::Members(std::function<void(api::EngineEvent)> sink, const Options& options)
    : group(options.balance, std::move(sink)) {
  engine::EngineConfig config = group_config(options);
  model::testing::RunnerOptions runner;
  if (!kernels::cpu_supports(kernels::Isa::kAvx2)) runner.backend = kernels::Backend::kRef;
  model::LoadOptions load = model::testing::load_options(runner);
  load.limits = engine::forward_limits(config);
  load.experts.topology = {1, options.num_ranks, options.slots_per_rank};
  load.experts.spare_slots = options.num_spares;
  load.experts.two_batches = options.two_batches;
  load.experts.max_low_latency_tokens = config.max_low_latency_tokens;
  const model::ModelConfig model_config = *model::load_config(load.directory, "");
  load.experts.placement = experts::trivial_placement(model_config.num_layers, model_config.num_routed_experts,
                                                      load.experts.topology.num_slots());
  auto exchanges = parallel::make_local_exchanges(exchange_shape(model_config, load), std::chrono::seconds(60), 0);
  std::vector<model::RankOptions> rank_options;
  std::vector<std::unique_ptr<profile::Recorder>> recorders;
  for (auto& exchange : exchanges) {
    model::RankOptions& rank = rank_options.emplace_back();
    rank.rank = exchange->rank();
    rank.clock = &clock;
    rank.spans = recorders.emplace_back(std::make_unique<profile::Recorder>(clock)).get();
    rank.exchange = std::move(exchange);
  }
  auto models = load_ranks(load, std::move(rank_options));
  CHECK(models.has_value());
  auto communicators = parallel::make_local_communicators(options.num_ranks, std::chrono::seconds(60));
  engine::BalancerParts balancer_parts;
  for (int32_t i = 0; i < options.num_ranks; ++i) {
    Rank& rank = *ranks.emplace_back(std::make_unique<Rank>());
    rank.spans = std::move(recorders[size_t(i)]);
    rank.model = std::move((*models)[size_t(i)]);
    rank.experts = std::make_unique<engine::ExpertPort>(model_config.num_layers, model_config.num_routed_experts,
                                                        *rank.model->expert_slots());
    kv::KvLayout layout{model_config.num_layers, model_config.mla().row_width(),
                        kernels::Context{runner.backend}.act_dtype(), config.block_tokens,
                        config.max_total_tokens / config.block_tokens};
    rank.cache.emplace(device::Device::kCpu, layout);
    rank.communicator = std::move(communicators[size_t(i)]);
    engine::EngineParts parts;
    parts.clock = &clock;
    parts.model = rank.model.get();
    parts.kernels = {runner.backend, kernels::best_isa(), &rank.pool, &rank.workspace, rank.spans.get()};
    parts.spans = rank.spans.get();
    parts.traces = &traces;
    parts.cache = &*rank.cache;
    parts.communicator = rank.communicator.get();
    parts.metrics = &metrics;
    parts.experts = rank.experts.get();
    config.dp_rank = i;
    if (options.num_ranks > 1) config.log_scope = fmt::format("DP{0} TP{0} EP{0}", i);
    auto engine = engine::Engine::create(config, parts, group.rank_sink());
    CHECK(engine.has_value());
    rank.engine = std::move(*engine);
    group.add(*rank.engine);
    balancer_parts.ports.push_back(rank.experts.get());
  }
  engine::ExpertBalancerConfig balancer_config = options.balancer;
  balancer_config.topology = load.experts.topology;
  balancer_parts.clock = &clock;
  balancer_parts.metrics = &metrics;
  balancer_parts.placement = load.experts.placement;
  balancer = std::make_unique<engine::ExpertBalancer>(balancer_config, std::move(balancer_parts));
  for (const auto& rank : ranks) {
    rank->thread = std::jthread([&engine = *rank->engine](std::stop_token stop) { engine.run(stop); });
  }
  balancer_thread = std::jthread([this](std::stop_token stop) { balancer->run(stop); });
}

inline RankGroup::Members::~Members() {
  balancer_thread = {};
  for (const auto& rank : ranks) rank->thread.request_stop();
}

}  // namespace tandem::testing
