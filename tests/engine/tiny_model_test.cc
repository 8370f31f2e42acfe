// The trained model through Engine: greedy continuations against the reference fixtures, combined and apart.
// The gap rule: a greedy token may differ only where the reference's best two logits are closer than 0.05; what follows
// such a difference is not compared.
#include <gtest/gtest.h>

#include "tests/engine/pair_rig.h"
#include "tests/model/model_runner.h"

namespace tandem::testing {
namespace {

using model::testing::field;
using model::testing::int_array;

struct Fixture {
  std::string name;
  std::vector<int32_t> ids, greedy;
  std::vector<float> margin;
};

std::vector<Fixture> load_fixtures(size_t longest_prompt) {
  const json::Document document = model::testing::load_json(model::testing::data_path("tiny/reference.json"));
  std::vector<Fixture> fixtures;
  for (const auto& prompt : model::testing::items(field(document.root(), "prompts"))) {
    Fixture fixture{model::testing::text(field(prompt, "name")), int_array(field(prompt, "ids")),
                    int_array(field(prompt, "greedy")), model::testing::float_array(field(prompt, "greedy_margin"))};
    if (fixture.ids.size() <= longest_prompt) fixtures.push_back(std::move(fixture));
  }
  return fixtures;
}

struct Comparison {
  size_t compared = 0, broken = 0;
  float widest = 0;
  void add(const Fixture& fixture, const std::vector<int32_t>& tokens) {
    for (size_t i = 0; i < tokens.size(); ++i, ++compared) {
      if (tokens[i] == fixture.greedy[i]) continue;
      if (fixture.margin[i] >= 0.05f) broken += 1;
      widest = std::max(widest, fixture.margin[i]);
      return;
    }
  }
};

engine::EngineConfig tiny_config(engine::Role role) {
  engine::EngineConfig config;
  config.role = role;
  config.block_tokens = 16;
  config.max_total_tokens = 8192;
  config.max_running_requests = 32;
  config.chunked_prefill_size = 512;
  config.max_prefill_tokens = 512;
  config.context_length = 2048;
  config.num_reserved_decode_tokens = 70;
  config.digest_sample_rate = 1;
  config.epoch = role == engine::Role::kDecode ? 2 : 1;
  return config;
}

// One model serves every engine of a test: they are driven in turns on one thread.
class TinyModel : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    model::testing::RunnerOptions options;
    options.max_tokens = 512;
    options.max_context = 2048;
    if (!kernels::cpu_supports(kernels::Isa::kAvx2)) options.backend = kernels::Backend::kRef;
    model_ = model::testing::must_load(options).release();
  }
  static void TearDownTestSuite() {
    delete model_;
    model_ = nullptr;
  }
  void SetUp() override {
    if (!kernels::cpu_supports(kernels::Isa::kAvx2)) GTEST_SKIP() << "needs AVX2";
  }
  static model::Model* model_;
};
model::Model* TinyModel::model_ = nullptr;

struct Side {
  Side(const engine::EngineConfig& config, model::Model& model, std::shared_ptr<kv::LocalFabric> fabric,
       ManualClock& clock_in, kernels::Backend backend = kernels::Backend::kCpu)
      : clock(clock_in),
        storage(device::Device::kCpu, layout(config, model, backend)),
        workspace(device::Device::kCpu, 64 << 20),
        pool(1),
        communicators(parallel::make_local_communicators(1, std::chrono::seconds(10))),
        port(1 << 16) {
    engine::EngineParts parts;
    parts.clock = &clock;
    parts.model = &model;
    parts.kernels = {backend, kernels::best_isa(), &pool, &workspace};
    parts.cache = &storage;
    parts.transfer = &port;
    parts.communicator = communicators[0].get();
    parts.metrics = &metrics;
    kv::TransferOptions options;
    options.host = config.role == engine::Role::kPrefill ? "prefill" : "decode";
    options.listen = config.role == engine::Role::kPrefill;
    options.port = options.listen ? Pair::kPort : 0;
    options.epoch = config.epoch;
    const std::span region(static_cast<std::byte*>(storage.base()), size_t(storage.layout().total_bytes()));
    hand = std::make_unique<HandTransfer>(kv::make_local_transfer(std::move(fabric), options, region), port);
    auto made = engine::Engine::create(config, parts, [this](api::EngineEvent event) {
      Answer& answer = answers[event.id.value];
      answer.tokens.insert(answer.tokens.end(), event.tokens.begin(), event.tokens.end());
      answer.cached_tokens = event.cached_tokens;
      if (event.finish) answer.finish = event.finish;
    });
    EXPECT_TRUE(made.has_value());
    engine = std::move(*made);
  }
  static kv::KvLayout layout(const engine::EngineConfig& config, const model::Model& model, kernels::Backend backend) {
    kernels::Context context;
    context.backend = backend;
    return {model.config().num_layers, model.config().mla().row_width(), context.act_dtype(), config.block_tokens,
            config.max_total_tokens / config.block_tokens};
  }
  bool turn() {
    clock.advance(std::chrono::microseconds(100));
    const bool any = engine->turn();
    return hand->pump(clock.now()) || any;
  }
  void submit(api::EngineRequest request) { engine->submit(engine::SubmitCommand{std::move(request)}); }

  ManualClock& clock;
  kv::KvStorage storage;
  device::Workspace workspace;
  device::ThreadPool pool;
  std::vector<std::unique_ptr<parallel::Communicator>> communicators;
  profile::Metrics metrics;
  kv::TransferPort port;
  std::unique_ptr<HandTransfer> hand;
  std::map<uint64_t, Answer> answers;
  std::unique_ptr<engine::Engine> engine;
};

void run(std::vector<Side*> sides) {
  for (int quiet = 0; quiet < 4;) {
    bool any = false;
    for (Side* side : sides) any |= side->turn();
    quiet = any ? 0 : quiet + 1;
  }
}

std::map<uint64_t, Answer> serve_combined(model::Model& model, engine::EngineConfig config,
                                          const std::vector<Fixture>& fixtures, bool one_by_one) {
  ManualClock clock;
  clock.advance(std::chrono::seconds(1));
  Side side(config, model, kv::make_local_fabric(), clock);
  for (size_t i = 0; i < fixtures.size(); ++i) {
    side.submit(greedy_request(i, fixtures[i].ids, 64));
    if (one_by_one) run({&side});
  }
  run({&side});
  return side.answers;
}

TEST_F(TinyModel, CombinedServesTheReferencesGreedyTokensInEveryBatchAndChunk) {
  const std::vector<Fixture> fixtures = load_fixtures(600);
  const auto alone = serve_combined(*model_, tiny_config(engine::Role::kCombined), fixtures, true);
  Comparison comparison;
  for (size_t i = 0; i < fixtures.size(); ++i) comparison.add(fixtures[i], alone.at(i).tokens);
  EXPECT_GT(comparison.compared, fixtures.size() * 20) << "most continuations are compared far enough";
  EXPECT_EQ(comparison.broken, 0u) << comparison.widest;
  engine::EngineConfig chunked = tiny_config(engine::Role::kCombined);
  chunked.chunked_prefill_size = 48;
  const auto batched = serve_combined(*model_, tiny_config(engine::Role::kCombined), fixtures, false);
  const auto chunks = serve_combined(*model_, chunked, fixtures, false);
  for (size_t i = 0; i < fixtures.size(); ++i) {
    EXPECT_EQ(batched.at(i).tokens, alone.at(i).tokens) << fixtures[i].name << " in a batch";
    EXPECT_EQ(chunks.at(i).tokens, alone.at(i).tokens) << fixtures[i].name << " in chunks";
  }
}

TEST(TinyModelReference, ServesTheReferencesGreedyTokensExactly) {
  model::testing::RunnerOptions options;
  options.backend = kernels::Backend::kRef;
  options.max_tokens = 512;
  options.max_context = 2048;
  const auto model = model::testing::must_load(options);
  const std::vector<Fixture> fixtures = load_fixtures(50);
  ManualClock clock;
  clock.advance(std::chrono::seconds(1));
  Side side(tiny_config(engine::Role::kCombined), *model, kv::make_local_fabric(), clock, kernels::Backend::kRef);
  for (size_t i = 0; i < fixtures.size(); ++i) side.submit(greedy_request(i, fixtures[i].ids, 64));
  run({&side});
  for (size_t i = 0; i < fixtures.size(); ++i)
    EXPECT_EQ(side.answers[i].tokens, fixtures[i].greedy) << fixtures[i].name;
}

TEST_F(TinyModel, ApartServesTheSameTokensAsCombinedAndDecodeComputesNoPrompt) {
  const std::vector<Fixture> fixtures = load_fixtures(600);
  const auto combined = serve_combined(*model_, tiny_config(engine::Role::kCombined), fixtures, false);
  for (const int32_t chunk : {512, 48}) {
    ManualClock clock;
    clock.advance(std::chrono::seconds(1));
    const auto fabric = kv::make_local_fabric();
    engine::EngineConfig prefill_config = tiny_config(engine::Role::kPrefill);
    prefill_config.chunked_prefill_size = chunk;
    Side prefill(prefill_config, *model_, fabric, clock),
        decode(tiny_config(engine::Role::kDecode), *model_, fabric, clock);
    int64_t prompt_tokens = 0;
    for (size_t i = 0; i < fixtures.size(); ++i) {
      const auto request = Pair::with_room(greedy_request(i, fixtures[i].ids, 64), 100 + i);
      prompt_tokens += int64_t(fixtures[i].ids.size());
      prefill.submit(request);
      decode.submit(request);
    }
    run({&prefill, &decode});
    for (size_t i = 0; i < fixtures.size(); ++i) {
      EXPECT_EQ(decode.answers.at(i).tokens, combined.at(i).tokens) << fixtures[i].name;
      ASSERT_TRUE(prefill.answers.at(i).finish.has_value());
    }
    EXPECT_EQ(decode.engine->snapshot().prompt_tokens_computed, 0u);
    EXPECT_EQ(decode.hand->transfer().bytes_read(), uint64_t(prompt_tokens * decode.storage.layout().token_bytes()));
    EXPECT_EQ(decode.engine->snapshot().leased_blocks, 0);
    EXPECT_EQ(prefill.engine->snapshot().leased_blocks, 0);
  }
}

TEST_F(TinyModel, CachedPromptGivesTheSameTokens) {
  const std::vector<Fixture> fixtures = load_fixtures(600);
  ManualClock clock;
  clock.advance(std::chrono::seconds(1));
  Side side(tiny_config(engine::Role::kCombined), *model_, kv::make_local_fabric(), clock);
  for (uint64_t round = 0; round < 2; ++round) {
    for (size_t i = 0; i < fixtures.size(); ++i) side.submit(greedy_request(round * 100 + i, fixtures[i].ids, 20));
    run({&side});
  }
  int32_t cached = 0;
  for (size_t i = 0; i < fixtures.size(); ++i) {
    EXPECT_EQ(side.answers[100 + i].tokens, side.answers[i].tokens) << fixtures[i].name;
    cached += side.answers[100 + i].cached_tokens;
  }
  EXPECT_GT(cached, 0);
}

}  // namespace
}  // namespace tandem::testing
