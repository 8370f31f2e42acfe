// The trained model on a GPU against the reference: choices under the gap rule in f32, loss on tensor cores.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/model/model_runner.h"

namespace tandem::model::testing {
namespace {

using kernels::Backend;

class GpuModel : public ::testing::Test {
 protected:
  void SetUp() override {
    const Result<device::GpuInfo> gpu = device::find_gpu(0);
    if (!gpu) GTEST_SKIP() << gpu.error().message;
  }
  RunnerOptions options(Backend backend) const {
    RunnerOptions options;
    options.backend = backend;
    if (backend == Backend::kCuda) options.kv_dtype = device::DType::kBF16;
    return options;
  }
};

struct Prompt {
  std::string name;
  std::vector<int32_t> ids, greedy;
  std::vector<float> gaps;
};

std::vector<Prompt> load_prompts() {
  const json::Document document = load_json(data_path("tiny/reference.json"));
  std::vector<Prompt> prompts;
  for (const Json in : items(field(document.root(), "prompts"))) {
    prompts.push_back({text(field(in, "name")), int_array(field(in, "ids")), int_array(field(in, "greedy")),
                       float_array(field(in, "greedy_margin"))});
  }
  return prompts;
}

// Fed with the reference's tokens one by one: choices that differ although the reference's gap is above 0.05.
TEST_F(GpuModel, InF32GreedyChoicesAreTheReferences) {
  const RunnerOptions chosen = options(Backend::kCudaF32);
  const auto model = must_load(chosen);
  Runner runner(*model, chosen);
  const size_t vocab = size_t(model->config().vocab_size);
  int compared = 0;
  for (const Prompt& prompt : load_prompts()) {
    runner.reset();
    const int sequence = runner.add_sequence(int32_t(prompt.ids.size() + prompt.greedy.size()));
    std::vector<float> logits = runner.prefill(sequence, prompt.ids, 0);
    for (size_t i = 0; i < prompt.greedy.size(); ++i) {
      if (prompt.gaps[i] > 0.05f) {
        ++compared;
        EXPECT_EQ(argmax({logits.data(), vocab}), prompt.greedy[i]) << prompt.name << " step " << i;
      }
      logits = runner.decode({{sequence}}, {{prompt.greedy[i]}});
    }
  }
  EXPECT_GT(compared, 1000);
}

double nll_error(const RunnerOptions& options) {
  const auto model = must_load(options);
  const size_t vocab = size_t(model->config().vocab_size);
  Runner runner(*model, options);
  const json::Document document = load_json(data_path("tiny/perplexity.json"));
  const std::vector<int32_t> ids = int_array(field(document.root(), "ids"));
  const std::vector<float> nll = float_array(field(document.root(), "nll"));
  const int sequence = runner.add_sequence(int32_t(ids.size()));
  double ours = 0, reference = 0;
  for (size_t begin = 0; begin < ids.size(); begin += 512) {
    const size_t rows = std::min<size_t>(512, ids.size() - begin);
    const std::vector<float> logits = runner.prefill(sequence, {ids.data() + begin, rows}, 0, true);
    for (size_t i = 0; i < rows && begin + i + 1 < ids.size(); ++i) {
      ours -= log_probability({logits.data() + i * vocab, vocab}, ids[begin + i + 1]);
      reference += nll[begin + i];
    }
  }
  return std::abs(ours - reference) / reference;
}

TEST_F(GpuModel, InF32TheLossOfTheHeldOutTextIsTheReferences) {
  EXPECT_LT(nll_error(options(Backend::kCudaF32)), 1e-4);
}

TEST_F(GpuModel, OnTensorCoresTheLossIsWithinAPercent) {
  const double error = nll_error(options(Backend::kCuda));
  RecordProperty("nll_error", std::to_string(error));
  EXPECT_LT(error, 0.01);
}

TEST_F(GpuModel, WithAnF8CacheTheLossIsWithinAPercent) {
  for (const Backend backend : {Backend::kCudaF32, Backend::kCuda}) {
    RunnerOptions chosen = options(backend);
    chosen.kv_dtype = device::DType::kF8E4M3;
    EXPECT_LT(nll_error(chosen), 0.01);
  }
}

TEST_F(GpuModel, ABatchIsDecodedLikeItsSequencesAlone) {
  for (const Backend backend : {Backend::kCudaF32, Backend::kCuda}) {
    const RunnerOptions chosen = options(backend);
    const auto model = must_load(chosen);
    Runner runner(*model, chosen);
    const size_t vocab = size_t(model->config().vocab_size);
    const std::vector<Prompt> prompts = load_prompts();
    std::vector<int> sequences;
    std::vector<int32_t> tokens;
    std::vector<float> alone;
    for (size_t i = 0; i < 6; ++i) {
      const int first = runner.add_sequence(int32_t(prompts[i].ids.size()) + 2);
      sequences.push_back(runner.add_sequence(int32_t(prompts[i].ids.size()) + 2));
      tokens.push_back(prompts[i].greedy[0]);
      runner.prefill(first, prompts[i].ids, 0);
      const std::vector<float> row = runner.decode({{first}}, {{tokens.back()}});
      alone.insert(alone.end(), row.begin(), row.end());
      runner.prefill(sequences.back(), prompts[i].ids, 100);
    }
    const std::vector<float> together = runner.decode(sequences, tokens);
    double error = 0, size = 0;
    for (size_t i = 0; i < alone.size(); ++i) {
      error += std::pow(double(together[i]) - alone[i], 2);
      size += double(alone[i]) * alone[i];
    }
    EXPECT_LT(std::sqrt(error / size), backend == Backend::kCudaF32 ? 1e-4 : 5e-2) << vocab;
  }
}

double relative_error(std::span<const float> got, std::span<const float> wanted) {
  double error = 0, size = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    error += std::pow(double(got[i]) - wanted[i], 2);
    size += double(wanted[i]) * wanted[i];
  }
  return std::sqrt(error / size);
}

// Batches that fit a recording, that fill one up, and that are too large for any, in turns and with other sequences.
TEST_F(GpuModel, ARecordedStepGivesWhatItGivesOpByOp) {
  for (const Backend backend : {Backend::kCudaF32, Backend::kCuda}) {
    const RunnerOptions chosen = options(backend);
    const auto model = must_load(chosen);
    Runner plain(*model, chosen), recorded(*model, chosen);
    recorded.record_decode({.batch_sizes = {2, 5}});
    std::vector<int32_t> plain_counts(size_t(model->config().num_layers * model->config().num_routed_experts));
    std::vector<int32_t> recorded_counts = plain_counts;
    plain.expert_counts = &plain_counts;
    recorded.expert_counts = &recorded_counts;
    const std::vector<Prompt> prompts = load_prompts();
    std::vector<int> all;
    for (size_t i = 0; i < 6; ++i) {
      all.push_back(plain.add_sequence(int32_t(prompts[i].ids.size()) + 16));
      EXPECT_EQ(recorded.add_sequence(int32_t(prompts[i].ids.size()) + 16), all.back());
      plain.prefill(all.back(), prompts[i].ids, 0);
      recorded.prefill(all.back(), prompts[i].ids, 0);
    }
    const std::vector<std::vector<int>> batches = {{0, 1}, {2, 3, 4}, {5, 0, 1, 2, 3, 4}, {1}, {3, 0, 5, 2}, {4, 5}};
    for (const std::vector<int>& batch : batches) {
      std::vector<int> sequences;
      std::vector<int32_t> tokens;
      for (int i : batch) {
        sequences.push_back(all[size_t(i)]);
        tokens.push_back(prompts[size_t(i)].greedy[0]);
      }
      const std::vector<float> wanted = plain.decode(sequences, tokens);
      EXPECT_FALSE(model->ran_recorded());
      const std::vector<float> got = recorded.decode(sequences, tokens);
      EXPECT_EQ(model->ran_recorded(), batch.size() <= 5);
      EXPECT_LT(relative_error(got, wanted), backend == Backend::kCudaF32 ? 1e-5 : 2e-2) << batch.size();
    }
    if (backend == Backend::kCudaF32) {
      EXPECT_EQ(plain_counts, recorded_counts);
    }
  }
}

TEST_F(GpuModel, WithoutFillingUpOnlyTheRecordedSizesRunRecorded) {
  const RunnerOptions chosen = options(Backend::kCuda);
  const auto model = must_load(chosen);
  Runner runner(*model, chosen);
  runner.record_decode({.batch_sizes = {1, 3}, .exchange_mode = {}, .fills_up = false});
  std::vector<int> sequences;
  for (size_t rows = 1; rows <= 3; ++rows) {
    sequences.push_back(runner.add_sequence(8));
    runner.decode(sequences, std::vector<int32_t>(rows, 5));
    EXPECT_EQ(model->ran_recorded(), rows != 2);
  }
}

TEST_F(GpuModel, ExpertsAreCountedAsOnTheCpu) {
  const json::Document document = load_json(data_path("tiny/routing.json"));
  const Json prompt = items(field(document.root(), "prompts")).front();
  const std::vector<int32_t> ids = int_array(field(prompt, "ids"));
  std::vector<std::vector<int32_t>> counted;
  for (const Backend backend : {Backend::kCpu, Backend::kCudaF32}) {
    RunnerOptions chosen = options(backend);
    if (backend == Backend::kCpu && !kernels::cpu_supports(chosen.isa)) chosen.backend = Backend::kRef;
    const auto model = must_load(chosen);
    Runner runner(*model, chosen);
    std::vector<int32_t>& counts =
        counted.emplace_back(size_t(model->config().num_layers * model->config().num_routed_experts));
    runner.expert_counts = &counts;
    runner.prefill(runner.add_sequence(int32_t(ids.size())), ids, 0);
  }
  EXPECT_EQ(counted[0], counted[1]);
}

class GpuGolden : public GpuModel, public ::testing::WithParamInterface<const char*> {};

// Every corner of the family, from transformers' float32 logits.
TEST_P(GpuGolden, InF32LogitsAreTheReferences) {
  RunnerOptions chosen = options(Backend::kCudaF32);
  chosen.directory = data_path(std::string("golden/") + GetParam());
  chosen.max_context = chosen.max_tokens = 128;
  const auto model = must_load(chosen);
  Runner runner(*model, chosen);
  const json::Document document = load_json(chosen.directory + "/golden.json");
  const std::vector<int32_t> ids = int_array(field(document.root(), "ids"));
  const std::vector<int32_t> positions = int_array(field(document.root(), "positions"));
  const std::vector<Json> wanted = items(field(document.root(), "logits"));
  const size_t vocab = size_t(model->config().vocab_size);
  const std::vector<float> prefilled = runner.prefill(runner.add_sequence(128), ids, 64, true);
  const int sequence = runner.add_sequence(128);
  std::vector<float> decoded;
  for (const int32_t id : ids) {
    const std::vector<float> row = runner.decode({{sequence}}, {{id}});
    decoded.insert(decoded.end(), row.begin(), row.end());
  }
  for (const std::vector<float>& logits : {prefilled, decoded}) {
    for (size_t i = 0; i < positions.size(); ++i) {
      const std::vector<float> row = float_array(wanted[i]);
      double error = 0, size = 0;
      for (size_t v = 0; v < vocab; ++v) {
        error += std::pow(double(logits[size_t(positions[i]) * vocab + v]) - row[v], 2);
        size += double(row[v]) * row[v];
      }
      EXPECT_LT(std::sqrt(error / size), 1e-3) << "position " << positions[i];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Family, GpuGolden,
                         ::testing::Values("v2_lite", "v2_groups", "v3_yarn", "v3_moonlight_tied", "v3_layer_freq"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace tandem::model::testing
