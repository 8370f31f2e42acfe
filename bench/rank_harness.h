// What the engine benchmarks of several ranks share: all ranks of one process as a server runs them, an engine thread
// each, without HTTP, and a way to measure steady decode.
#pragma once

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "engine/engine.h"
#include "engine/expert_balancer.h"
#include "engine/expert_port.h"
#include "engine/group.h"

namespace tandem::bench {

inline double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
// Of the calling thread.
inline int64_t processor_ns() {
  timespec time{};
  CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0);
  return int64_t(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}
inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Notes how long a rank's experts took in each layer of each step: processor time from the rows' arrival to the
// results.
class TimedExchange final : public parallel::ExpertExchange {
 public:
  struct Piece {
    uint64_t step = 0;
    int32_t layer = 0;
    int64_t pairs = 0, ns = 0;
  };
  explicit TimedExchange(std::unique_ptr<parallel::ExpertExchange> inner) : inner_(std::move(inner)) {}
  Rank rank() const override { return inner_->rank(); }
  const parallel::ExchangeShape& shape() const override { return inner_->shape(); }
  void post_dispatch(int32_t channel, parallel::ExchangeTag tag, parallel::ExchangeMode mode, device::TensorView x,
                     device::TensorView slots) override {
    tag_ = tag;
    inner_->post_dispatch(channel, tag, mode, x, slots);
  }
  Result<std::optional<parallel::ReceivedRows>> poll_received(int32_t channel, TimePoint now) override {
    auto received = inner_->poll_received(channel, now);
    if (notes && received && received->has_value()) {
      pairs_ = (*received)->results.dim(0);
      since_ = processor_ns();
    }
    return received;
  }
  void post_results(int32_t channel) override {
    if (notes) pieces.push_back({tag_.step, tag_.layer, pairs_, processor_ns() - since_});
    inner_->post_results(channel);
  }
  Result<bool> poll_results(int32_t channel, TimePoint now, std::span<const float*> rows) override {
    return inner_->poll_results(channel, now, rows);
  }
  void wait(int32_t channel, Duration timeout) override { inner_->wait(channel, timeout); }

  std::atomic<bool> notes = false;
  std::vector<Piece> pieces;  // the engine thread's; read when it has nothing to do

 private:
  const std::unique_ptr<parallel::ExpertExchange> inner_;
  parallel::ExchangeTag tag_;
  int64_t pairs_ = 0, since_ = 0;
};

class RankServer {
 public:
  struct Options {
    std::string config = "tiny";  // the trained model, or the shape of tests/data/configs with invented weights
    int32_t layers = 0;           // the first so many; 0: all
    int32_t num_ranks = 1, num_threads = 1;
    int32_t redundant = 0, spares = 0;
    int32_t max_running = 64;  // of a rank
    double temperature = 0;
    experts::DispatchAlgorithm dispatch = experts::DispatchAlgorithm::kStatic;
    engine::ExpertBalancerConfig balancer = {};
  };

  explicit RankServer(const Options& options)
      : options_(options), group_(engine::LoadBalance::kRoundRobin, [this](api::EngineEvent event) { take(event); }) {
    const engine::EngineConfig config = engine_config();
    model::LoadOptions load = load_options(config);
    model_config_ = *model::load_config(load.directory, load.config_overrides);
    const int32_t slots = model_config_.num_routed_experts + options.redundant;
    CHECK(slots % options.num_ranks == 0);
    load.experts.topology = topology_ = {1, options.num_ranks, slots / options.num_ranks};
    load.experts.placement =
        experts::trivial_placement(model_config_.num_layers, model_config_.num_routed_experts, slots);
    build(config, load);
  }
  ~RankServer() {
    balancer_thread_ = {};
    for (const auto& rank : ranks_) rank->thread.request_stop();
    for (const auto& rank : ranks_) rank->thread = {};
  }

  // Tokens per second of all ranks while all of these sequences decode, over so many steps.
  double decode_rate(const std::vector<std::vector<int32_t>>& prompts, int32_t steps) {
    const auto batch = int64_t(prompts.size());
    const int64_t ended_at_end = ended_ + batch;
    for (const std::vector<int32_t>& prompt : prompts) submit(prompt, steps + steps / 4 + 16);
    while (group_.snapshot().running < batch) std::this_thread::sleep_for(std::chrono::microseconds(200));
    note(true);
    const int64_t begin_tokens = tokens_;
    const double begin = wall_seconds();
    wait_until([&] { return tokens_ >= begin_tokens + batch * steps; });
    const double elapsed = wall_seconds() - begin;
    const int64_t counted = tokens_ - begin_tokens;
    note(false);
    wait_until([&] { return ended_ >= ended_at_end; });
    return double(counted) / elapsed;
  }

  const model::ModelConfig& model_config() const { return model_config_; }
  const experts::EpTopology& topology() const { return topology_; }
  engine::ExpertBalancer& balancer() { return *balancer_; }
  TimedExchange& exchange(int32_t rank) { return *ranks_[size_t(rank)]->exchange; }
  profile::Metrics& metrics() { return metrics_; }

 private:
  struct RankParts {
    std::unique_ptr<model::Model> model;
    TimedExchange* exchange = nullptr;  // the model's
    std::unique_ptr<engine::ExpertPort> experts;
    std::optional<kv::KvStorage> cache;
    device::Workspace workspace{device::Device::kCpu, 64 << 20};
    device::ThreadPool pool{1};
    std::unique_ptr<parallel::Communicator> communicator;
    std::unique_ptr<engine::Engine> engine;
    std::jthread thread;
  };

  engine::EngineConfig engine_config() const {
    engine::EngineConfig config;
    config.block_tokens = 16;
    config.max_total_tokens = options_.max_running * 512;
    config.max_running_requests = options_.max_running;
    config.chunked_prefill_size = config.max_prefill_tokens = 512;
    config.context_length = 2048;
    config.radix_cache = false;
    config.decode_log_interval = 1 << 30;
    config.max_low_latency_tokens = options_.max_running;
    return config;
  }
  model::LoadOptions load_options(const engine::EngineConfig& config) const {
    model::LoadOptions load;
    const bool tiny = options_.config == "tiny";
    load.directory =
        std::string(TANDEM_SOURCE_DIR) + (tiny ? "/models/tiny" : "/tests/data/configs/" + options_.config);
    if (options_.layers > 0) load.config_overrides = fmt::format("{{\"num_hidden_layers\": {}}}", options_.layers);
    load.dummy_weights = !tiny;
    load.isa = kernels::best_isa();
    load.num_threads = 2;
    load.limits = engine::forward_limits(config);
    load.experts.dispatch = options_.dispatch;
    load.experts.spare_slots = options_.spares;
    load.experts.max_low_latency_tokens = config.max_low_latency_tokens;
    return load;
  }

  void build(engine::EngineConfig config, const model::LoadOptions& load) {
    constexpr int32_t kSpins = 20000;
    std::vector<model::RankOptions> rank_options;
    for (auto& exchange :
         parallel::make_local_exchanges(exchange_shape(model_config_, load), std::chrono::seconds(60), kSpins)) {
      model::RankOptions& rank = rank_options.emplace_back();
      rank.rank = exchange->rank();
      rank.num_threads = options_.num_threads;
      rank.clock = &clock_;
      auto timed = std::make_unique<TimedExchange>(std::move(exchange));
      ranks_.emplace_back(std::make_unique<RankParts>())->exchange = timed.get();
      rank.exchange = std::move(timed);
    }
    auto models = load_ranks(load, std::move(rank_options));
    if (!models) {
      fmt::print(stderr, "{}\n", models.error().message);
      std::exit(1);
    }
    auto communicators = parallel::make_local_communicators(options_.num_ranks, std::chrono::seconds(60));
    engine::BalancerParts parts;
    for (size_t i = 0; i < ranks_.size(); ++i) {
      ranks_[i]->model = std::move((*models)[i]);
      ranks_[i]->communicator = std::move(communicators[i]);
      config.dp_rank = int32_t(i);
      start_rank(*ranks_[i], config, load);
      parts.ports.push_back(ranks_[i]->experts.get());
    }
    parts.clock = &clock_;
    parts.metrics = &metrics_;
    parts.placement = load.experts.placement;
    engine::ExpertBalancerConfig balancer = options_.balancer;
    balancer.topology = topology_;
    balancer.dispatch = options_.dispatch;
    balancer_ = std::make_unique<engine::ExpertBalancer>(balancer, std::move(parts));
    balancer_thread_ = std::jthread([this](std::stop_token stop) { balancer_->run(stop); });
    for (const auto& rank : ranks_) {
      rank->thread = std::jthread([&engine = *rank->engine](std::stop_token stop) { engine.run(stop); });
    }
  }

  void start_rank(RankParts& rank, const engine::EngineConfig& config, const model::LoadOptions& load) {
    rank.experts = std::make_unique<engine::ExpertPort>(model_config_.num_layers, model_config_.num_routed_experts,
                                                        *rank.model->expert_slots());
    const kv::KvLayout layout{model_config_.num_layers, model_config_.mla().row_width(), device::DType::kF32,
                              config.block_tokens, config.max_total_tokens / config.block_tokens};
    rank.cache.emplace(device::Device::kCpu, layout);
    engine::EngineParts parts;
    parts.clock = &clock_;
    parts.model = rank.model.get();
    parts.kernels = {kernels::Backend::kCpu, load.isa, &rank.pool, &rank.workspace};
    parts.cache = &*rank.cache;
    parts.communicator = rank.communicator.get();
    parts.metrics = &metrics_;
    parts.experts = rank.experts.get();
    rank.engine = std::move(*engine::Engine::create(config, parts, group_.rank_sink()));
    group_.add(*rank.engine);
  }

  void submit(const std::vector<int32_t>& prompt, int32_t max_new_tokens) {
    api::EngineRequest request;
    request.id = {next_id_++};
    request.rid = std::to_string(request.id.value);
    request.input_ids = prompt;
    request.sampling.edit().temperature = options_.temperature;
    request.sampling.edit().max_new_tokens = max_new_tokens;
    request.sampling.edit().ignore_eos = true;
    group_.submit(engine::SubmitCommand{std::move(request)});
  }
  void take(const api::EngineEvent& event) {
    tokens_ += int64_t(event.tokens.size());
    ended_ += event.finish.has_value() ? 1 : 0;
  }
  template <class Condition>
  void wait_until(Condition condition) {
    while (!condition()) std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  void note(bool on) {
    for (const auto& rank : ranks_) rank->exchange->notes = on;
  }

  const Options options_;
  SystemClock clock_;
  profile::Metrics metrics_;
  model::ModelConfig model_config_;
  experts::EpTopology topology_;
  std::atomic<int64_t> tokens_ = 0, ended_ = 0;
  uint64_t next_id_ = 1;
  engine::EngineGroup group_;
  std::vector<std::unique_ptr<RankParts>> ranks_;
  std::unique_ptr<engine::ExpertBalancer> balancer_;
  std::jthread balancer_thread_;
};

}  // namespace tandem::bench
