// The trained model on several ranks: logits are those of one rank, bit for bit, whatever the number of ranks, the
// placement, the dispatch and the form of the exchange.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <thread>

#include "tests/model/model_runner.h"
#include "tests/parallel/node_rig.h"
#include "transport/transport.h"

namespace tandem::model::testing {
namespace {

constexpr int32_t kLayers = 6, kExperts = 32;

struct RankSetup {
  int32_t num_ranks = 1, slots_per_rank = kExperts;
  bool shuffled = false;
  experts::DispatchAlgorithm dispatch = experts::DispatchAlgorithm::kStatic;
  parallel::ExchangeMode mode = parallel::ExchangeMode::kNormal;
  bool two_batches = false;
  int32_t num_nodes = 1;  // more: rows travel over UCX between halves of the ranks
  int32_t attention_tp_size = 1;
  const char* directory = nullptr;  // null: the trained model
  parallel::ExchangePayload payload = parallel::ExchangePayload::kAsTheyAre;
};

// Every expert once, the other slots at random.
experts::ExpertPlacement shuffled_placement(const experts::EpTopology& topology) {
  experts::ExpertPlacement placement = experts::trivial_placement(kLayers, kExperts, topology.num_slots());
  std::mt19937 random(5);
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    const auto begin = placement.logical_of_slot.begin() + layer * topology.num_slots();
    for (int32_t slot = kExperts; slot < topology.num_slots(); ++slot) begin[slot] = int32_t(random() % kExperts);
    std::shuffle(begin, begin + topology.num_slots(), random);
  }
  return placement;
}

class Group {
 public:
  explicit Group(const RankSetup& setup) : setup_(setup) {
    options_.max_tokens = 64;
    options_.max_context = 256;
    options_.num_threads = 1;
    options_.payload = setup.payload;
    if (!kernels::cpu_supports(kernels::Isa::kAvx2)) options_.backend = kernels::Backend::kRef;
    if (setup.directory) options_.directory = data_path(setup.directory);
    LoadOptions load = load_options(options_);
    load.experts.topology = {setup.num_nodes, setup.num_ranks, setup.slots_per_rank};
    load.attention_tp_size = setup.attention_tp_size;
    load.experts.dispatch = setup.dispatch;
    load.experts.max_low_latency_tokens = 64;
    load.experts.two_batches = setup.two_batches;
    if (setup.shuffled) load.experts.placement = shuffled_placement(load.experts.topology);
    const auto config = load_config(options_.directory, "");
    const parallel::ExchangeShape shape = exchange_shape(*config, load);
    std::vector<std::unique_ptr<parallel::ExpertExchange>> exchanges;
    if (config->num_routed_experts > 0) {
      exchanges = setup.num_nodes == 1 ? parallel::make_local_exchanges(shape, std::chrono::seconds(60), 0)
                                       : exchanges_between_nodes(shape);
    }
    auto seats =
        parallel::make_attention_groups(Rank{0}, setup.num_ranks, setup.attention_tp_size, std::chrono::seconds(60), 0);
    std::vector<RankOptions> ranks;
    for (size_t i = 0; i < seats.size(); ++i) {
      RankOptions& rank = ranks.emplace_back();
      rank.rank = Rank{int32_t(i)};
      rank.clock = &clock_;
      if (!exchanges.empty()) rank.exchange = std::move(exchanges[i]);
      if (setup.attention_tp_size > 1) rank.attention = std::move(seats[i]);
    }
    auto loaded = load_ranks(load, std::move(ranks));
    CHECK(loaded.has_value());
    models_ = std::move(*loaded);
  }

  // Each attention group prefills and then decodes prompts of its own; they have different numbers of steps, so that
  // some run idle ones. All ranks of a group give the same logits.
  std::vector<std::vector<float>> run(const std::vector<std::vector<int32_t>>& prompts) {
    std::vector<std::vector<std::vector<float>>> logits(size_t(setup_.attention_tp_size));
    for (auto& of_rank : logits) of_rank.resize(prompts.size());
    std::vector<std::shared_ptr<kv::KvStorage>> caches;
    for (size_t d = 0; d < num_groups(); ++d) caches.push_back(Runner::make_cache(*models_[0], options_));
    std::vector<std::jthread> threads;
    for (size_t r = 0; r < models_.size(); ++r) {
      const size_t group = r / size_t(setup_.attention_tp_size), index = r % size_t(setup_.attention_tp_size);
      threads.emplace_back([&, r, group, index] { run_rank(r, prompts, caches[group], logits[index]); });
    }
    threads.clear();
    for (const auto& of_rank : logits) EXPECT_TRUE(of_rank == logits[0]) << "ranks of a group differ";
    return logits[0];
  }

 private:
  static constexpr int32_t kDecodeSteps = 4;
  static constexpr int32_t kSteps = 24;

  std::vector<std::unique_ptr<parallel::ExpertExchange>> exchanges_between_nodes(const parallel::ExchangeShape& shape) {
    std::vector<parallel::MeetingOptions> options;
    const auto context = transport::Context::create({});
    const uint16_t port = *(*transport::Worker::create(**context))->listen("127.0.0.1", 0);
    for (int32_t node = 0; node < setup_.num_nodes; ++node) {
      options.push_back(parallel::meeting_options(setup_.num_nodes, node, setup_.num_ranks / setup_.num_nodes, port));
    }
    std::vector<std::unique_ptr<parallel::ExpertExchange>> all;
    for (parallel::MeetResult& met : parallel::meet_all(options, clock_)) {
      CHECK(met.has_value());
      auto ranks = (*met)->exchanges(shape, std::chrono::seconds(60), 0);
      CHECK(ranks.has_value());
      for (auto& rank : *ranks) all.push_back(std::move(rank));
      nodes_.push_back(std::move(*met));
    }
    return all;
  }

  size_t num_groups() const { return models_.size() / size_t(setup_.attention_tp_size); }

  void run_rank(size_t rank, const std::vector<std::vector<int32_t>>& prompts, std::shared_ptr<kv::KvStorage> cache,
                std::vector<std::vector<float>>& logits) {
    Runner runner(*models_[rank], options_, std::move(cache));
    runner.exchange_mode = setup_.mode;
    runner.two_batches = setup_.two_batches;
    int32_t steps = 0;
    for (size_t p = rank / size_t(setup_.attention_tp_size); p < prompts.size(); p += num_groups()) {
      const int sequence = runner.add_sequence(int32_t(prompts[p].size()) + kDecodeSteps);
      const std::vector<float> first = runner.prefill(sequence, prompts[p], 0);
      logits[p].insert(logits[p].end(), first.begin(), first.end());
      for (int32_t i = 0; i < kDecodeSteps; ++i) {
        const std::vector<float> next = runner.decode({{sequence}}, {{50 + i}});
        logits[p].insert(logits[p].end(), next.begin(), next.end());
      }
      steps += 1 + kDecodeSteps;
    }
    for (; steps < kSteps; ++steps) runner.idle();
  }

  const RankSetup setup_;
  const SystemClock clock_;
  RunnerOptions options_;
  std::vector<std::shared_ptr<parallel::NodeGroup>> nodes_;  // outlive the exchanges
  std::vector<std::unique_ptr<Model>> models_;
};

std::vector<std::vector<int32_t>> some_prompts() {
  std::mt19937 random(1);
  std::vector<std::vector<int32_t>> prompts;
  for (const size_t length : {40, 3, 17, 64}) {
    std::vector<int32_t>& prompt = prompts.emplace_back();
    for (size_t i = 0; i < length; ++i) prompt.push_back(int32_t(random() % 8000));
  }
  return prompts;
}

TEST(Ranks, LogitsAreThoseOfOneRank) {
  using enum experts::DispatchAlgorithm;
  using enum parallel::ExchangeMode;
  const auto prompts = some_prompts();
  const auto alone = Group(RankSetup{}).run(prompts);
  const std::vector<RankSetup> setups = {
      {2, 16, false, kStatic, kNormal},
      {4, 8, false, kStatic, kLowLatency},
      {4, 12, false, kStatic, kNormal},
      {4, 10, true, kStatic, kNormal},
      {4, 10, true, kDynamic, kLowLatency},
      {2, 20, true, kWeighted, kNormal},
      {3, 12, true, kDynamic, kNormal},
      {2, 16, false, kStatic, kNormal, true},
      {4, 10, true, kWeighted, kLowLatency, true},
      {4, 10, true, kStatic, kNormal, true, 2},
      {4, 10, true, kWeighted, kLowLatency, true, 2},
  };
  for (const RankSetup& setup : setups) {
    EXPECT_EQ(Group(setup).run(prompts), alone) << setup.num_ranks << " ranks on " << setup.num_nodes << " nodes, of "
                                                << setup.slots_per_rank << " slots, " << to_string(setup.dispatch);
  }
}

// Every rank computes with the rows as they were quantised, its own tokens' too.
TEST(Ranks, WithRowsInFp8LogitsAreThoseOfOneRankToo) {
  using enum experts::DispatchAlgorithm;
  using enum parallel::ExchangeMode;
  const auto prompts = some_prompts();
  const auto plain = Group(RankSetup{}).run(prompts);
  const auto run = [&](RankSetup setup) {
    setup.payload = parallel::ExchangePayload::kFp8;
    return Group(setup).run(prompts);
  };
  const auto alone = run({});
  EXPECT_NE(alone, plain) << "rows are rounded where they stay, too";
  const std::vector<RankSetup> setups = {
      {2, 16, false, kStatic, kNormal},          {4, 8, false, kStatic, kLowLatency},
      {4, 10, true, kDynamic, kNormal, true},    {4, 10, true, kWeighted, kLowLatency, true, 2},
      {4, 10, true, kStatic, kNormal, false, 2}, {4, 8, false, kStatic, kLowLatency, false, 1, 2},
  };
  for (const RankSetup& setup : setups) {
    EXPECT_EQ(run(setup), alone) << setup.num_ranks << " ranks on " << setup.num_nodes << " nodes, of "
                                 << setup.slots_per_rank << " slots, " << to_string(setup.dispatch);
  }
}

// With attention tensor parallelism heads and tokens are split and gathered, never summed: still bit for bit.
TEST(Ranks, LogitsAreThoseOfOneRankWhereAttentionIsSplit) {
  using enum experts::DispatchAlgorithm;
  using enum parallel::ExchangeMode;
  const auto prompts = some_prompts();
  const auto alone = Group(RankSetup{}).run(prompts);
  const std::vector<RankSetup> setups = {
      {2, 16, false, kStatic, kNormal, false, 2}, {4, 8, false, kStatic, kLowLatency, false, 2},
      {8, 5, true, kDynamic, kNormal, false, 4},  {4, 8, false, kStatic, kLowLatency, true, 4},
      {4, 10, true, kWeighted, kNormal, true, 2},
  };
  for (const RankSetup& setup : setups) {
    EXPECT_TRUE(Group(setup).run(prompts) == alone)
        << setup.num_ranks << " ranks, " << setup.attention_tp_size << " to an attention group";
  }
}

// Every architecture of the family: without q_lora, tied embeddings, dense layers between, yarn.
TEST(Ranks, EveryFixtureCanBeSplit) {
  std::vector<std::vector<int32_t>> prompts;
  for (const std::vector<int32_t>& prompt : some_prompts()) {
    std::vector<int32_t>& small = prompts.emplace_back();
    for (const int32_t id : prompt) small.push_back(id % 60);
  }
  for (const char* name :
       {"golden/v2_lite", "golden/v2_groups", "golden/v3_yarn", "golden/v3_layer_freq", "golden/v3_moonlight_tied"}) {
    const auto config = load_config(data_path(name), "");
    ASSERT_TRUE(config.has_value()) << name;
    RankSetup setup;
    setup.directory = name;
    setup.slots_per_rank = config->num_routed_experts;
    const auto alone = Group(setup).run(prompts);
    setup.attention_tp_size = setup.num_ranks = 2;
    setup.slots_per_rank = (config->num_routed_experts + 1) / 2;
    EXPECT_TRUE(Group(setup).run(prompts) == alone) << name;
  }
}

TEST(Ranks, HeadsThatDoNotDivideAreNamed) {
  LoadOptions load = load_options(RunnerOptions{});
  load.attention_tp_size = 3;
  EXPECT_EQ(load_ranks(load, {}).error().message, "model: 4 attention heads cannot be split over 3 ranks");
}

TEST(Ranks, APlacementThatDoesNotFitIsNamed) {
  LoadOptions load = load_options(RunnerOptions{});
  load.experts.topology = {1, 1, 33};
  load.experts.placement = experts::trivial_placement(kLayers, kExperts, 33);
  load.experts.placement.logical_of_slot[4] = 5;
  EXPECT_EQ(load_ranks(load, {}).error().message, "layer 0: expert 4 has no slot");
  load.experts.placement = experts::trivial_placement(kLayers - 1, kExperts, 33);
  EXPECT_EQ(load_ranks(load, {}).error().message,
            "the expert placement is for 5 layers of 32 experts, the model has 6 of 32");
  load.experts.topology = {1, 1, 31};
  EXPECT_EQ(load_ranks(load, {}).error().message, "1 ranks of 31 slots cannot hold 32 experts");
}

}  // namespace
}  // namespace tandem::model::testing
