// The trained model on two GPUs of one process, experts spread over both: every rank's logits are those of one GPU.
#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "tests/model/model_runner.h"

namespace tandem::model::testing {
namespace {

using kernels::Backend;
using parallel::ExchangeMode;

constexpr int32_t kRanks = 2;

struct Pair {
  std::vector<std::unique_ptr<Model>> models;
};

Result<Pair> load_pair(const RunnerOptions& options) {
  static const SystemClock clock;
  LoadOptions load = load_options(options);
  ASSIGN_OR_RETURN(const ModelConfig config, load_config(load.directory, ""));
  load.experts.topology.num_ranks = kRanks;
  load.experts.topology.slots_per_rank = config.num_routed_experts / kRanks;
  load.experts.max_low_latency_tokens = 16;
  std::vector<parallel::PeerSeat> seats;
  for (int32_t r = 0; r < kRanks; ++r) {
    device::use_gpu(r);
    ASSIGN_OR_RETURN(device::Stream stream, device::Stream::create());
    seats.push_back({r, std::make_shared<const device::Stream>(std::move(stream)), std::chrono::seconds(20)});
  }
  ASSIGN_OR_RETURN(auto exchanges, parallel::make_peer_exchanges(exchange_shape(config, load), options.backend, seats));
  std::vector<RankOptions> ranks(kRanks);
  for (int32_t r = 0; r < kRanks; ++r) {
    RankOptions& rank = ranks[size_t(r)];
    rank.rank = Rank{r};
    rank.gpu = r;
    rank.clock = &clock;
    rank.stream = seats[size_t(r)].stream;
    rank.exchange = std::move(exchanges[size_t(r)]);
  }
  Pair pair;
  ASSIGN_OR_RETURN(pair.models, load_ranks(load, std::move(ranks)));
  return pair;
}

// What a rank does, in steps that both ranks take: its prompts in turn, then decode steps of some of them. A rank that
// has nothing to do takes part with an idle step.
struct Script {
  std::vector<std::vector<int32_t>> prompts;
  std::vector<std::vector<int>> decodes;  // which sequences; none: idle
};

std::vector<float> play(Runner& runner, const Script& script, size_t num_prompts, bool idles) {
  std::vector<float> all;
  std::vector<int> sequences;
  const auto keep = [&all](const std::vector<float>& logits) { all.insert(all.end(), logits.begin(), logits.end()); };
  runner.exchange_mode = ExchangeMode::kNormal;
  for (size_t i = 0; i < num_prompts; ++i) {
    if (i >= script.prompts.size()) {
      if (idles) runner.idle();
      continue;
    }
    sequences.push_back(runner.add_sequence(int32_t(script.prompts[i].size()) + 16));
    keep(runner.prefill(sequences.back(), script.prompts[i], 0));
  }
  runner.exchange_mode = ExchangeMode::kLowLatency;
  for (const std::vector<int>& decode : script.decodes) {
    std::vector<int> batch;
    for (int i : decode) batch.push_back(sequences[size_t(i)]);
    if (!batch.empty()) {
      keep(runner.decode(batch, std::vector<int32_t>(batch.size(), 17)));
    } else if (idles) {
      runner.idle();
    }
  }
  return all;
}

std::vector<Script> scripts() {
  const json::Document document = load_json(data_path("tiny/reference.json"));
  std::vector<std::vector<int32_t>> prompts;
  for (const Json in : items(field(document.root(), "prompts"))) prompts.push_back(int_array(field(in, "ids")));
  return {{{prompts[0], prompts[1], prompts[2]}, {{0, 1, 2}, {1}, {}, {2, 0}, {0, 1, 2}, {0}}},
          {{prompts[3]}, {{0}, {}, {0}, {0}, {0}, {0}}}};
}

double relative_error(const std::vector<float>& got, const std::vector<float>& wanted) {
  if (got.size() != wanted.size()) return INFINITY;
  double error = 0, size = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    error += std::pow(double(got[i]) - wanted[i], 2);
    size += double(wanted[i]) * wanted[i];
  }
  return std::sqrt(error / size);
}

// Both ranks play their scripts at the same time; logits by rank.
std::vector<std::vector<float>> play_pair(const RunnerOptions& options, bool records) {
  std::vector<std::vector<float>> got(kRanks);
  Result<Pair> pair = load_pair(options);
  EXPECT_TRUE(pair.has_value()) << pair.error().message;
  if (!pair) return got;
  const std::vector<Script> played = scripts();
  std::vector<std::jthread> threads;
  for (int32_t r = 0; r < kRanks; ++r) {
    threads.emplace_back([&, r] {
      device::use_gpu(r);
      Runner runner(*pair->models[size_t(r)], options);
      // Both at the same time: a step runs once before it is recorded.
      if (records) runner.record_decode({.batch_sizes = {2, 4}, .exchange_mode = ExchangeMode::kLowLatency});
      got[size_t(r)] = play(runner, played[size_t(r)], 3, true);
    });
  }
  threads.clear();
  return got;
}

class GpuPair : public ::testing::TestWithParam<std::tuple<Backend, bool>> {};

TEST_P(GpuPair, LogitsAreThoseOfOneGpu) {
  if (const Result<device::GpuInfo> second = device::find_gpu(1); !second) GTEST_SKIP() << second.error().message;
  const auto [backend, records] = GetParam();
  RunnerOptions options;
  options.backend = backend;
  if (backend == Backend::kCuda) options.kv_dtype = device::DType::kBF16;
  device::use_gpu(0);
  const std::vector<Script> played = scripts();
  std::vector<std::vector<float>> wanted;
  {
    const auto alone = must_load(options);
    for (const Script& script : played) {
      Runner runner(*alone, options);
      wanted.push_back(play(runner, script, 3, false));
    }
  }
  const std::vector<std::vector<float>> got = play_pair(options, records);
  for (size_t r = 0; r < size_t(kRanks); ++r) {
    EXPECT_LT(relative_error(got[r], wanted[r]), backend == Backend::kCudaF32 ? 1e-5 : 2e-2) << "rank " << r;
  }
}

// The product would have quantised the rows in the same way where they arrive.
TEST(GpuPairPayload, RowsInFp8ChangeNoBit) {
  if (const Result<device::GpuInfo> second = device::find_gpu(1); !second) GTEST_SKIP() << second.error().message;
  for (const bool records : {false, true}) {
    RunnerOptions options;
    options.backend = Backend::kCuda;
    options.kv_dtype = device::DType::kBF16;
    const auto plain = play_pair(options, records);
    options.payload = parallel::ExchangePayload::kFp8;
    EXPECT_TRUE(play_pair(options, records) == plain) << (records ? "recorded" : "op by op");
  }
}

TEST(GpuPairPayload, Fp8NeedsTensorCores) {
  RunnerOptions options;
  options.backend = Backend::kCudaF32;
  options.payload = parallel::ExchangePayload::kFp8;
  const auto loaded = load_ranks(load_options(options), {});
  ASSERT_FALSE(loaded);
  EXPECT_NE(loaded.error().message.find("needs tensor cores"), std::string::npos) << loaded.error().message;
}

INSTANTIATE_TEST_SUITE_P(All, GpuPair,
                         ::testing::Combine(::testing::Values(Backend::kCudaF32, Backend::kCuda), ::testing::Bool()),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param) == Backend::kCuda ? "Tensor" : "F32") +
                                  (std::get<1>(info.param) ? "Recorded" : "");
                         });

}  // namespace
}  // namespace tandem::model::testing
