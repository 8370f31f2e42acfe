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
#include "engine/plan_board.h"
#include "profile/span.h"
#include "profile/trace_writer.h"
#include "tests/engine/engine_rig.h"
#include "tests/model/model_runner.h"

namespace tandem::testing {

class RankGroup {
 public:
  struct Options {
    int32_t num_ranks = 1, slots_per_rank = 32, num_spares = 0;
    int32_t attn_tp_size = 1;
    int32_t max_total_tokens = 4096;
    double conservativeness = 1;
    engine::LoadBalance balance = engine::LoadBalance::kRoundRobin;
    engine::ExpertBalancerConfig balancer = {};
    bool two_batches = false;
    std::vector<int32_t> gpus = {};  // of the ranks, which compute in f32 then; none: on the CPU
    bool records_decode = false;     // CUDA graphs
    // Puts something between the mover and the GPUs; may be empty.
    std::function<std::shared_ptr<engine::PlaceCopies>(std::shared_ptr<engine::PlaceCopies>)> wrap_copies = {};
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
    answer.cached_tokens = event.cached_tokens;
    answer.retractions = event.total_retractions;
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

  static engine::EngineConfig engine_config(const Options& options);
  static std::vector<std::unique_ptr<model::Model>> load_models(
      const model::LoadOptions& load, const Options& options, const Clock& clock,
      std::vector<std::unique_ptr<profile::Recorder>>& recorders);
  static void use_gpus(const parallel::ExchangeShape& shape, std::span<const int32_t> gpus,
                       std::vector<model::RankOptions>& ranks);

  // Ranks, their threads and the group; last, so that they end before what their events need.
  struct Members {
    Members(std::function<void(api::EngineEvent)> sink, const Options& options);
    ~Members();
    void build_engine(Rank& rank, const kernels::Context& kernels);
    void start(const Options& options);
    SystemClock clock;
    kernels::Backend backend = kernels::Backend::kCpu;
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
  std::shared_ptr<kv::KvStorage> cache;  // of the attention group
  std::shared_ptr<engine::PlanBoard> plans;
  std::optional<device::Workspace> workspace;
  device::ThreadPool pool{1};
  engine::EngineConfig config;
  std::unique_ptr<parallel::Communicator> communicator;
  std::unique_ptr<engine::Engine> engine;
  std::jthread thread;
};

inline engine::EngineConfig RankGroup::engine_config(const Options& options) {
  engine::EngineConfig config;
  config.block_tokens = 16;
  config.max_total_tokens = options.max_total_tokens;
  config.max_running_requests = 16;
  config.chunked_prefill_size = 64;
  config.max_prefill_tokens = 64;
  config.context_length = 512;
  config.max_low_latency_tokens = 16;
  config.attn_tp_size = options.attn_tp_size;
  config.two_batch_overlap = options.two_batches;
  config.schedule_conservativeness = options.conservativeness;
  if (options.records_decode) {
    config.recorded_decode.batch_sizes = {1, 2, 4, 8, 16};
    config.recorded_decode.exchange_mode = parallel::ExchangeMode::kLowLatency;
  }
  return config;
}

// A stream for each rank, and the exchange between them.
inline void RankGroup::use_gpus(const parallel::ExchangeShape& shape, std::span<const int32_t> gpus,
                                std::vector<model::RankOptions>& ranks) {
  std::vector<parallel::PeerSeat> seats;
  for (size_t i = 0; i < ranks.size(); ++i) {
    device::use_gpu(gpus[i]);
    auto stream = device::Stream::create(true);
    CHECK(stream.has_value());
    ranks[i].gpu = gpus[i];
    ranks[i].stream = std::make_shared<const device::Stream>(std::move(*stream));
    seats.push_back({gpus[i], ranks[i].stream, std::chrono::seconds(20)});
  }
  if (ranks.size() == 1) {
    ranks[0].exchange = parallel::make_gpu_exchange(shape, kernels::Backend::kCudaF32, ranks[0].stream);
    return;
  }
  auto exchanges = parallel::make_peer_exchanges(shape, kernels::Backend::kCudaF32, seats);
  CHECK(exchanges.has_value());
  for (size_t i = 0; i < ranks.size(); ++i) ranks[i].exchange = std::move((*exchanges)[i]);
}

inline std::vector<std::unique_ptr<model::Model>> RankGroup::load_models(
    const model::LoadOptions& load, const Options& options, const Clock& clock,
    std::vector<std::unique_ptr<profile::Recorder>>& recorders) {
  const model::ModelConfig config = *model::load_config(load.directory, "");
  constexpr auto kDeadline = std::chrono::seconds(60);
  auto exchanges = parallel::make_local_exchanges(exchange_shape(config, load), kDeadline, 0);
  auto seats =
      parallel::make_attention_groups(tandem::Rank{0}, int32_t(exchanges.size()), load.attention_tp_size, kDeadline, 0);
  std::vector<model::RankOptions> rank_options;
  for (size_t i = 0; i < exchanges.size(); ++i) {
    model::RankOptions& rank = rank_options.emplace_back();
    rank.rank = exchanges[i]->rank();
    rank.clock = &clock;
    rank.spans = recorders.emplace_back(std::make_unique<profile::Recorder>(clock)).get();
    if (load.attention_tp_size > 1) rank.attention = std::move(seats[i]);
    rank.exchange = std::move(exchanges[i]);
  }
  if (!options.gpus.empty()) use_gpus(exchange_shape(config, load), options.gpus, rank_options);
  auto models = load_ranks(load, std::move(rank_options));
  CHECK(models.has_value());
  return std::move(*models);
}

inline RankGroup::Members::Members(std::function<void(api::EngineEvent)> sink, const Options& options)
    : group(options.balance, std::move(sink)) {
  engine::EngineConfig config = engine_config(options);
  model::testing::RunnerOptions runner;
  if (!kernels::cpu_supports(kernels::Isa::kAvx2)) runner.backend = kernels::Backend::kRef;
  if (!options.gpus.empty()) runner.backend = kernels::Backend::kCudaF32;
  backend = runner.backend;
  model::LoadOptions load = model::testing::load_options(runner);
  load.limits = engine::forward_limits(config);
  load.attention_tp_size = options.attn_tp_size;
  load.experts.topology = {1, options.num_ranks, options.slots_per_rank};
  load.experts.spare_slots = options.num_spares;
  load.experts.two_batches = options.two_batches;
  load.experts.max_low_latency_tokens = config.max_low_latency_tokens;
  const model::ModelConfig model_config = *model::load_config(load.directory, "");
  load.experts.placement = experts::trivial_placement(model_config.num_layers, model_config.num_routed_experts,
                                                      load.experts.topology.num_slots());
  std::vector<std::unique_ptr<profile::Recorder>> recorders;
  std::vector<std::unique_ptr<model::Model>> models = load_models(load, options, clock, recorders);
  auto communicators = parallel::make_local_communicators(options.num_ranks, std::chrono::seconds(60));
  engine::BalancerParts balancer_parts;
  const kv::KvLayout layout{model_config.num_layers, model_config.mla().row_width(),
                            kernels::Context{runner.backend}.act_dtype(), config.block_tokens,
                            config.max_total_tokens / config.block_tokens};
  for (int32_t i = 0; i < options.num_ranks; ++i) {
    Rank& rank = *ranks.emplace_back(std::make_unique<Rank>());
    rank.spans = std::move(recorders[size_t(i)]);
    rank.model = std::move(models[size_t(i)]);
    rank.communicator = std::move(communicators[size_t(i)]);
    rank.experts = std::make_unique<engine::ExpertPort>(model_config.num_layers, model_config.num_routed_experts,
                                                        *rank.model->expert_slots());
    config.dp_rank = i / options.attn_tp_size;
    config.attn_tp_rank = i % options.attn_tp_size;
    if (options.num_ranks > 1) config.log_scope = fmt::format("DP{} TP{} EP{}", config.dp_rank, i, i);
    if (!options.gpus.empty()) device::use_gpu(options.gpus[size_t(i)]);
    rank.workspace.emplace(device_of(runner.backend), size_t(64) << 20);
    rank.cache = config.attn_tp_rank > 0 ? ranks[size_t(i) - 1]->cache
                                         : std::make_shared<kv::KvStorage>(device_of(runner.backend), layout);
    rank.plans = config.attn_tp_rank > 0 ? ranks[size_t(i) - 1]->plans : std::make_shared<engine::PlanBoard>();
    rank.config = config;
    balancer_parts.ports.push_back(rank.experts.get());
  }
  engine::ExpertBalancerConfig balancer_config = options.balancer;
  balancer_config.topology = load.experts.topology;
  balancer_parts.clock = &clock;
  balancer_parts.metrics = &metrics;
  balancer_parts.placement = load.experts.placement;
  if (!options.gpus.empty()) balancer_parts.copies = *engine::make_gpu_copies(options.gpus);
  if (options.wrap_copies) balancer_parts.copies = options.wrap_copies(std::move(balancer_parts.copies));
  balancer = std::make_unique<engine::ExpertBalancer>(balancer_config, std::move(balancer_parts));
  start(options);
}

// On GPUs all engines at the same time: they record steps after a run, in which ranks meet each other.
inline void RankGroup::Members::start(const Options& options) {
  const auto use_gpu = [gpus = options.gpus](size_t i) {
    if (!gpus.empty()) device::use_gpu(gpus[i]);
  };
  const auto build = [&](size_t i) {
    use_gpu(i);
    Rank& rank = *ranks[i];
    build_engine(rank,
                 {backend, kernels::best_isa(), &rank.pool, &*rank.workspace, rank.spans.get(), rank.model->stream()});
  };
  std::vector<std::jthread> building;
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (options.gpus.empty()) {
      build(i);
    } else {
      building.emplace_back(build, i);
    }
  }
  building.clear();
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (ranks[i]->config.attn_tp_rank == 0) group.add(*ranks[i]->engine);
  }
  for (size_t i = 0; i < ranks.size(); ++i) {
    ranks[i]->thread = std::jthread([&engine = *ranks[i]->engine, use_gpu, i](std::stop_token stop) {
      use_gpu(i);
      engine.run(stop);
    });
  }
  balancer_thread = std::jthread([this](std::stop_token stop) { balancer->run(stop); });
}

inline void RankGroup::Members::build_engine(Rank& rank, const kernels::Context& kernels) {
  const engine::EngineConfig& config = rank.config;
  engine::EngineParts parts;
  parts.clock = &clock;
  parts.model = rank.model.get();
  parts.kernels = kernels;
  parts.spans = rank.spans.get();
  parts.traces = &traces;
  parts.cache = rank.cache.get();
  parts.communicator = rank.communicator.get();
  parts.metrics = &metrics;
  parts.experts = rank.experts.get();
  if (config.attn_tp_size > 1) parts.plans = rank.plans.get();
  auto engine = engine::Engine::create(config, parts, group.rank_sink());
  CHECK(engine.has_value());
  rank.engine = std::move(*engine);
}

inline RankGroup::Members::~Members() {
  balancer_thread = {};
  for (const auto& rank : ranks) rank->thread.request_stop();
}

}  // namespace tandem::testing
