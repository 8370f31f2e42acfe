// What an engine relies on besides the numbers: no allocation in a step, order of layer_done, memory as planned,
// invented weights, fingerprints, refused limits.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <new>

#include "model/arch/deepseek.h"
#include "model/arch/deepseek_weights.h"
#include "tests/model/model_runner.h"

namespace {

std::atomic<int64_t> allocations{0};

void* counted(size_t bytes, size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = alignment <= alignof(std::max_align_t)
                     ? std::malloc(bytes)
                     : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (!memory) std::abort();
  return memory;
}

}  // namespace

void* operator new(size_t bytes) { return counted(bytes, 1); }
void* operator new[](size_t bytes) { return counted(bytes, 1); }
void* operator new(size_t bytes, std::align_val_t alignment) { return counted(bytes, size_t(alignment)); }
void* operator new[](size_t bytes, std::align_val_t alignment) { return counted(bytes, size_t(alignment)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace tandem::model::testing {
namespace {

using kernels::Backend;

RunnerOptions small(Backend backend) {
  RunnerOptions options;
  options.directory = data_path("golden/v2_groups");
  options.backend = backend;
  options.max_tokens = 64;
  options.max_context = 128;
  options.max_sequences = 4;
  return options;
}

// One prefill step of 64 rows and one decode step of 4, with memory of their own.
struct Steps {
  std::vector<int32_t> tokens = std::vector<int32_t>(64, 3), positions, slots, blocks{0, 1, 2, 3}, rows{0, 1, 2, 3};
  std::vector<kernels::SequenceSpan> spans;
  std::vector<float> logits = std::vector<float>(64 * 96);
  std::vector<int32_t> counts = std::vector<int32_t>(3 * 8);
  ForwardBatch batch;

  explicit Steps(Phase phase) {
    const int32_t per_sequence = phase == Phase::kPrefill ? 16 : 1;
    for (int32_t s = 0; s < 4; ++s) {
      spans.push_back({s * per_sequence, per_sequence, 0, &blocks[size_t(s)]});
      for (int32_t i = 0; i < per_sequence; ++i) {
        positions.push_back(i);
        slots.push_back(s * 16 + i);
      }
    }
    batch.phase = phase;
    batch.token_ids = std::span(tokens).first(positions.size());
    batch.positions = positions;
    batch.slots = slots;
    batch.sequences = spans;
    batch.logit_rows = rows;
    batch.logits = logits.data();
    batch.expert_counts = counts.data();
  }
};

kv::KvStorage small_cache(const Model& model, Backend backend) {
  kv::KvLayout layout;
  layout.num_layers = model.config().num_layers;
  layout.row_width = model.config().mla().row_width();
  layout.dtype = backend == Backend::kRef ? device::DType::kF32 : device::DType::kBF16;
  layout.block_tokens = 16;
  layout.num_blocks = 4;
  return kv::KvStorage(device::Device::kCpu, layout);
}

TEST(Forward, AStepAllocatesNothing) {
  for (const Backend backend : {Backend::kRef, Backend::kCpu}) {
    if (backend == Backend::kCpu && !kernels::cpu_supports(kernels::best_isa())) continue;
    const auto model = must_load(small(backend));
    kv::KvStorage cache = small_cache(*model, backend);
    Steps prefill(Phase::kPrefill), decode(Phase::kDecode);
    int layers = 0;
    const std::function<void(int32_t)> layer_done = [&](int32_t) { ++layers; };
    ASSERT_TRUE(model->forward(prefill.batch, cache, layer_done));
    const int64_t before = allocations.load();
    EXPECT_GT(before, 0);  // the counter is linked in
    ASSERT_TRUE(model->forward(prefill.batch, cache, layer_done));
    ASSERT_TRUE(model->forward(decode.batch, cache, layer_done));
    EXPECT_EQ(allocations.load(), before) << "backend " << int(backend);
    EXPECT_EQ(layers, 3 * model->config().num_layers);
  }
}

TEST(Forward, LayersAreDoneInOrderAndExpertsAreCounted) {
  const RunnerOptions options = small(Backend::kRef);
  const auto model = must_load(options);
  Runner runner(*model, options);
  std::vector<int32_t> counts(size_t(3 * 8));
  runner.expert_counts = &counts;
  const std::vector<int32_t> ids(20, 7);
  runner.prefill(runner.add_sequence(32), ids, 0);
  EXPECT_EQ(runner.layers_done, (std::vector<int32_t>{0, 1, 2}));
  int64_t total = 0;
  for (int32_t n : counts) total += n;
  EXPECT_EQ(total, 20 * 3 * 2);  // tokens, experts per token, expert layers
}

TEST(Forward, RowsWithoutLogitsCostNone) {
  const auto model = must_load(small(Backend::kRef));
  kv::KvStorage cache = small_cache(*model, Backend::kRef);
  Steps steps(Phase::kPrefill);
  steps.batch.logit_rows = {};
  steps.batch.logits = nullptr;
  steps.batch.expert_counts = nullptr;
  ASSERT_TRUE(model->forward(steps.batch, cache, {}));
}

TEST(DummyWeights, AreTheSeedsAndGiveFiniteActivations) {
  RunnerOptions options;
  options.directory = data_path("configs/s");
  options.dummy_weights = true;
  options.max_tokens = options.max_context = 64;
  const std::vector<int32_t> ids{1, 50, 900, 4000, 8000};
  const auto logits = [&](uint64_t seed, int threads) {
    options.seed = seed;
    options.num_threads = threads;
    const auto model = must_load(options);
    Runner runner(*model, options);
    return runner.prefill(runner.add_sequence(16), ids, 0);
  };
  const std::vector<float> first = logits(1, 1);
  double squares = 0;
  for (float logit : first) {
    ASSERT_TRUE(std::isfinite(logit));
    squares += double(logit) * logit;
  }
  const double rms = std::sqrt(squares / double(first.size()));
  EXPECT_GT(rms, 0.1);
  EXPECT_LT(rms, 10);
  EXPECT_EQ(logits(1, 2), first);
  EXPECT_NE(logits(2, 2), first);
}

TEST(Fingerprint, TellsModelsApartAndNotBackends) {
  RunnerOptions options = small(Backend::kRef);
  const uint64_t ref = must_load(options)->fingerprint();
  options.backend = Backend::kCpu;
  EXPECT_EQ(must_load(options)->fingerprint(), ref);
  options.directory = data_path("golden/v3_yarn");
  EXPECT_NE(must_load(options)->fingerprint(), ref);
  options.dummy_weights = true;
  const uint64_t dummy = must_load(options)->fingerprint();
  options.seed = 5;
  EXPECT_NE(must_load(options)->fingerprint(), dummy);
}

TEST(PlanMemory, IsNearWhatLoadingTakes) {
  const auto config = load_config(data_path("configs/deepseek-r1"), "");
  ASSERT_TRUE(config);
  LoadOptions options;
  options.limits = {1024, 64, 64, 8192};
  const auto plan = plan_memory(*config, options);
  ASSERT_TRUE(plan) << plan.error().message;
  EXPECT_NEAR(double(plan->weight_bytes + plan->expert_bytes), 674e9,
              5e9);  // 671 G at a byte, the head at two, scales, kv_b twice
  EXPECT_GT(plan->workspace_bytes, int64_t(1) << 28);
  EXPECT_LT(plan->workspace_bytes, int64_t(1) << 33);
}

int64_t packed_bytes(const DeepseekWeights& w) {
  int64_t bytes = int64_t(w.embedding.bytes() + w.final_norm.buffer.bytes());
  for (const auto& share : w.head) bytes += int64_t(share.bytes());
  for (const AttentionWeights& a : w.attention) {
    for (const Values* v : {&a.input_norm, &a.q_a_norm, &a.kv_a_norm}) bytes += int64_t(v->buffer.bytes());
    bytes += int64_t(a.down.bytes() + a.output.bytes());
    for (const auto& share : a.q_up) bytes += int64_t(share.bytes());
    for (const auto& share : a.kv_up) {
      bytes += int64_t(share.expand.bytes());
      for (const auto& head : share.absorb_k) bytes += int64_t(head.bytes());
      for (const auto& head : share.absorb_v) bytes += int64_t(head.bytes());
    }
  }
  for (const MlpWeights& m : w.mlp) {
    for (const Values* v : {&m.norm, &m.router, &m.bias}) bytes += int64_t(v->buffer.bytes());
    if (m.always_width > 0) bytes += int64_t(m.always.gate_up.bytes() + m.always.down.bytes());
  }
  return bytes;
}

TEST(PlanMemory, WeightsTakeWhatWasPlanned) {
  for (const Backend backend : {Backend::kRef, Backend::kCpu}) {
    LoadOptions options;
    options.directory = data_path("configs/s");
    options.backend = backend;
    options.isa = kernels::best_isa();
    options.limits = {64, 4, 4, 64};
    const auto config = load_config(options.directory, "");
    ASSERT_TRUE(config);
    const WeightSource source = WeightSource::dummy(deepseek_tensors(*config), *config, 0);
    options.num_threads = 2;
    options.experts.topology = {1, 2, 20};
    options.experts.spare_slots = 3;
    options.experts.placement = experts::trivial_placement(config->num_layers, config->num_routed_experts, 40);
    std::vector<RankExperts> ranks(1);
    ranks[0].rank = Rank{1};
    const auto weights = pack_deepseek(*config, source, options, ranks);
    ASSERT_TRUE(weights);
    const auto plan = plan_memory(*config, options);
    const int64_t packed = packed_bytes(**weights);
    EXPECT_NEAR(double(plan->weight_bytes), double(packed), 0.02 * double(packed));
    const ExpertSlots& slots = *ranks[0].slots;
    const double slab = double(slots.place(0).size()) * slots.num_places();
    EXPECT_NEAR(double(plan->expert_bytes), slab, 0.02 * slab);
  }
}

TEST(LoadModel, RefusesLimitsThatTheModelCannotServe) {
  const auto fault = [](const ForwardLimits& limits, int threads) {
    LoadOptions options = load_options(small(Backend::kRef));
    options.limits = limits;
    options.num_threads = threads;
    const auto model = load_model(options);
    return model ? std::string() : model.error().message;
  };
  EXPECT_NE(fault({0, 1, 1, 64}, 1).find("max_tokens must be at least 1"), std::string::npos);
  EXPECT_NE(fault({1, 1, 1, 2048}, 1).find("max_context 2048 is more than max_position_embeddings 1024"),
            std::string::npos);
  EXPECT_NE(fault({1, 1, 1, 64}, 0).find("num_threads"), std::string::npos);
  EXPECT_EQ(fault({1, 1, 1, 64}, 1), "");
}

TEST(LoadModel, ReportsProgressToTheEnd) {
  LoadOptions options = load_options(small(Backend::kRef));
  std::vector<double> seen;
  options.progress = [&](double fraction) { seen.push_back(fraction); };
  ASSERT_TRUE(load_model(options));
  ASSERT_EQ(seen.size(), 3u);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_DOUBLE_EQ(seen.back(), 1.0);
}

}  // namespace
}  // namespace tandem::model::testing
