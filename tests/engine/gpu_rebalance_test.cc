// Experts moved between ranks on GPUs while these serve: on one GPU and on two, with recorded steps and without.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <numeric>
#include <optional>
#include <random>

#include "base/json.h"
#include "device/digest.h"
#include "experts/files.h"
#include "tests/engine/rank_group_rig.h"

namespace tandem::testing {
namespace {

using model::testing::field;
using model::testing::Json;

constexpr int32_t kLayers = 6, kExperts = 32, kTopK = 6, kSlots = 40;
constexpr size_t kNewTokens = 24, kPromptTokens = 256;

// Two ranks on one GPU wait for each other in kernels, beside which no code can be loaded.
const bool loads_code_first = setenv("CUDA_MODULE_LOADING", "EAGER", 1) == 0;

// The reference's choices, up to where its best two logits come close.
struct Prompt {
  std::vector<int32_t> ids, tokens;
};

std::vector<Prompt> load_prompts() {
  const json::Document document = model::testing::load_json(model::testing::data_path("tiny/reference.json"));
  std::vector<Prompt> prompts;
  for (const Json in : model::testing::items(field(document.root(), "prompts"))) {
    Prompt prompt{model::testing::int_array(field(in, "ids")), {}};
    const std::vector<int32_t> greedy = model::testing::int_array(field(in, "greedy"));
    const std::vector<float> gaps = model::testing::float_array(field(in, "greedy_margin"));
    for (size_t i = 0; i < std::min(greedy.size(), kNewTokens) && gaps[i] > 0.05f; ++i) {
      prompt.tokens.push_back(greedy[i]);
    }
    if (prompt.ids.size() <= kPromptTokens && !prompt.tokens.empty()) prompts.push_back(std::move(prompt));
  }
  return prompts;
}

std::string random_placement_json(uint32_t seed) {
  std::mt19937 random(seed);
  json::Array layers;
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    std::vector<int32_t> row;
    for (int32_t slot = 0; slot < kSlots; ++slot) row.push_back(slot < kExperts ? slot : int32_t(random() % kExperts));
    std::shuffle(row.begin(), row.end(), random);
    layers.push_back(json::Array(row.begin(), row.end()));
  }
  json::Object object;
  object["physical_to_logical_map"] = std::move(layers);
  return json::dump(object);
}

RankGroup::Options options_of(std::vector<int32_t> gpus, bool records) {
  RankGroup::Options options;
  options.num_ranks = 2;
  options.slots_per_rank = kSlots / 2;
  options.num_spares = 4;
  options.gpus = std::move(gpus);
  options.records_decode = records;
  options.balancer.experts_per_token = kTopK;
  options.balancer.layers_per_version = 2;
  options.balancer.bytes_per_step = 2 << 20;
  return options;
}

// Whether it was accepted.
bool rebalance(RankGroup& ranks, uint32_t seed) {
  std::atomic<int> accepted{-1};
  ranks.group.balancer->rebalance("", random_placement_json(seed),
                                  [&](Result<engine::RebalanceReply> reply) { accepted = reply ? 1 : 0; });
  while (accepted == -1) std::this_thread::yield();
  return accepted == 1;
}

// Until so many have ended, well or not: one may be accepted before the view says that it is in progress.
void await_end(RankGroup& ranks, uint64_t count) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  for (;;) {
    const auto view = ranks.group.balancer->view();
    if (view.epoch + uint64_t(view.failed) >= count && !view.in_progress) return;
    ASSERT_LT(std::chrono::steady_clock::now(), deadline);
    std::this_thread::yield();
  }
}

void submit(RankGroup& ranks, const std::vector<Prompt>& prompts, uint64_t id) {
  const Prompt& prompt = prompts[size_t(id) % prompts.size()];
  ranks.group.group.submit(engine::SubmitCommand{greedy_request(id, prompt.ids, int32_t(kNewTokens))});
}

void expect_tokens(RankGroup& ranks, const std::vector<Prompt>& prompts, uint64_t requests) {
  for (uint64_t id = 0; id < requests; ++id) {
    const std::vector<int32_t>& wanted = prompts[size_t(id) % prompts.size()].tokens;
    std::vector<int32_t> got = ranks.answer(id).tokens;
    ASSERT_EQ(got.size(), kNewTokens) << "request " << id;
    got.resize(wanted.size());
    EXPECT_EQ(got, wanted) << "request " << id;
  }
}

std::string why_not(const std::vector<int32_t>& gpus) {
  for (const int32_t gpu : gpus) {
    if (const Result<device::GpuInfo> found = device::find_gpu(gpu); !found) return found.error().message;
  }
  return {};
}

class GpuRebalance : public ::testing::TestWithParam<std::tuple<int32_t, bool>> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(loads_code_first);
    gpus_ = {0, std::get<0>(GetParam())};
    if (const std::string why = why_not(gpus_); !why.empty()) GTEST_SKIP() << why;
  }
  bool records() const { return std::get<1>(GetParam()); }
  std::vector<int32_t> gpus_;
};

TEST_P(GpuRebalance, TokensAreTheReferencesWhileExpertsMove) {
  const std::vector<Prompt> prompts = load_prompts();
  ASSERT_GT(prompts.size(), 4u);
  RankGroup ranks(options_of(gpus_, records()));
  uint64_t submitted = 0;
  for (uint32_t seed = 0; seed < 12; ++seed) {
    for (int i = 0; i < 3; ++i) submit(ranks, prompts, submitted++);
    EXPECT_TRUE(rebalance(ranks, seed));
    await_end(ranks, seed + 1);
    ASSERT_EQ(ranks.group.balancer->view().failed, 0u) << ranks.group.balancer->view().last_error;
    if (submitted > 12) {
      ASSERT_TRUE(ranks.wait_for(submitted - 12));
    }
  }
  ASSERT_TRUE(ranks.wait_for(submitted));
  EXPECT_EQ(ranks.group.balancer->view().epoch, 12u);
  EXPECT_GT(ranks.group.balancer->view().moves_done, 200);
  // After the last move, too, when every expert has been elsewhere.
  for (size_t i = 0; i < prompts.size() && i < 8; ++i) submit(ranks, prompts, submitted++);
  ASSERT_TRUE(ranks.wait_for(submitted));
  expect_tokens(ranks, prompts, submitted);
  // A rank without tokens does not run a recording, but the last step had some.
  const bool ran = std::ranges::any_of(ranks.group.ranks, [](const auto& rank) { return rank->model->ran_recorded(); });
  EXPECT_EQ(ran, records());
}

// Puts other bytes into one of the copies.
class Spoiler final : public engine::PlaceCopies {
 public:
  Spoiler(std::shared_ptr<engine::PlaceCopies> inner, std::atomic<int>& spoil_at)
      : inner_(std::move(inner)), spoil_at_(spoil_at) {}

  Status copy(int32_t to_rank, std::span<const std::byte> from, std::span<std::byte> to) override {
    Status copied = inner_->copy(to_rank, from, to);
    if (copied && spoil_at_.fetch_sub(1) == 1) copied = inner_->copy(to_rank, from.subspan(64, 64), to.subspan(0, 64));
    return copied;
  }
  void begin_digest(int32_t rank, std::span<const std::byte> place) override { inner_->begin_digest(rank, place); }
  std::optional<uint64_t> take_digest(int32_t rank) override { return inner_->take_digest(rank); }

 private:
  const std::shared_ptr<engine::PlaceCopies> inner_;
  std::atomic<int>& spoil_at_;
};

TEST_P(GpuRebalance, ASpoiledCopyIsFoundAndTheOldPlacementServesOn) {
  const std::vector<Prompt> prompts = load_prompts();
  std::atomic<int> spoil_at{5};
  RankGroup::Options options = options_of(gpus_, records());
  options.balancer.bytes_per_step = 0;
  options.wrap_copies = [&](std::shared_ptr<engine::PlaceCopies> inner) {
    return std::make_shared<Spoiler>(std::move(inner), spoil_at);
  };
  RankGroup ranks(options);
  uint64_t submitted = 0;
  for (int i = 0; i < 4; ++i) submit(ranks, prompts, submitted++);
  EXPECT_TRUE(rebalance(ranks, 1));
  await_end(ranks, 1);
  EXPECT_EQ(ranks.group.balancer->view().failed, 1u);
  EXPECT_NE(ranks.group.balancer->view().last_error.find("digest"), std::string::npos)
      << ranks.group.balancer->view().last_error;
  for (int i = 0; i < 4; ++i) submit(ranks, prompts, submitted++);
  ASSERT_TRUE(ranks.wait_for(submitted));
  EXPECT_TRUE(rebalance(ranks, 2));
  await_end(ranks, 2);
  EXPECT_EQ(ranks.group.balancer->view().failed, 1u);
  for (int i = 0; i < 4; ++i) submit(ranks, prompts, submitted++);
  ASSERT_TRUE(ranks.wait_for(submitted));
  expect_tokens(ranks, prompts, submitted);
}

// What is recorded while the requests are served one after the other.
experts::ExpertLoad record(RankGroup::Options options, const std::vector<Prompt>& prompts) {
  options.balancer.recorder_steps = -1;
  options.balancer.dump_directory = ::testing::TempDir() + "tandem_gpu_recorder";
  std::filesystem::remove_all(options.balancer.dump_directory);
  RankGroup ranks(options);
  std::atomic<bool> started = false;
  ranks.group.balancer->start_recording([&](Status) { started = true; });
  while (!started) std::this_thread::yield();
  for (uint64_t id = 0; id < 4; ++id) {
    submit(ranks, prompts, id);
    EXPECT_TRUE(ranks.wait_for(id + 1));
  }
  std::atomic<bool> dumped = false;
  std::string path;
  ranks.group.balancer->dump_recording([&](Result<std::string> paths) {
    if (paths) path = paths->substr(0, paths->find('\n'));
    dumped = true;
  });
  while (!dumped) std::this_thread::yield();
  const Result<experts::LoadFile> file =
      experts::read_load({{path}}, {kLayers, kExperts, 0}, experts::StepDetail::kSum);
  EXPECT_TRUE(file.has_value()) << path;
  return file ? file->load : experts::ExpertLoad();
}

TEST_P(GpuRebalance, RecordedHitsAreTheCpus) {
  const std::vector<Prompt> prompts = load_prompts();
  const experts::ExpertLoad gpu = record(options_of(gpus_, records()), prompts);
  const experts::ExpertLoad cpu = record(options_of({}, false), prompts);
  ASSERT_EQ(gpu.tokens.size(), cpu.tokens.size());
  ASSERT_EQ(gpu.tokens.size(), size_t(kLayers * kExperts));
  int64_t all = 0, different = 0;
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    const size_t row = size_t(layer * kExperts);
    int64_t on_gpu = 0, on_cpu = 0;
    for (size_t i = row; i < row + size_t(kExperts); ++i) {
      on_gpu += gpu.tokens[i];
      on_cpu += cpu.tokens[i];
      different += std::abs(gpu.tokens[i] - cpu.tokens[i]);
    }
    EXPECT_EQ(on_gpu, on_cpu) << "layer " << layer;
    all += on_cpu;
  }
  EXPECT_GT(all, 0);
  EXPECT_LT(different, all / 50);  // close choices of experts, and what follows a close choice of a token
}

INSTANTIATE_TEST_SUITE_P(All, GpuRebalance, ::testing::Combine(::testing::Values(0, 1), ::testing::Bool()),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param) == 0 ? "OneGpu" : "TwoGpus") +
                                  (std::get<1>(info.param) ? "Recorded" : "");
                         });

TEST(GpuDigest, IsTheHostsOverAnyLength) {
  if (const std::string why = why_not({0}); !why.empty()) GTEST_SKIP() << why;
  device::use_gpu(0);
  const auto stream = device::Stream::create();
  ASSERT_TRUE(stream.has_value());
  const device::Buffer out(device::Device::kCuda, sizeof(uint64_t));
  std::mt19937_64 random(3);
  for (const size_t words : {size_t(2), size_t(64), size_t(8190), size_t(1'000'000)}) {
    std::vector<uint64_t> values(words);
    for (uint64_t& value : values) value = random();
    const device::Buffer there(device::Device::kCuda, words * sizeof(uint64_t));
    device::copy_bytes(there.data(), values.data(), there.bytes());
    device::digest_async(*stream, {static_cast<const std::byte*>(there.data()), there.bytes()},
                         static_cast<uint64_t*>(out.data()));
    stream->synchronize();
    uint64_t got = 0;
    device::copy_bytes(&got, out.data(), sizeof(got));
    EXPECT_EQ(got, device::digest_of_words(std::as_bytes(std::span(values)))) << words;
  }
}

}  // namespace
}  // namespace tandem::testing
