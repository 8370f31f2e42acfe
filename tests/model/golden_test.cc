// Random checkpoints of every corner of the family against transformers' float32 logits
// (tools/tiny-model/make_golden.py): no q_lora, softmax greedy and group-limited gates, yarn, tied embeddings ...
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/model/model_runner.h"

namespace tandem::model::testing {
namespace {

struct Golden {
  std::vector<int32_t> ids, positions;
  std::vector<std::vector<float>> logits;  // of each position
};

Golden load_golden(const std::string& name) {
  const json::Document document = load_json(data_path("golden/" + name + "/golden.json"));
  Golden golden{int_array(field(document.root(), "ids")), int_array(field(document.root(), "positions")), {}};
  for (const Json row : items(field(document.root(), "logits"))) golden.logits.push_back(float_array(row));
  return golden;
}

RunnerOptions golden_options(const std::string& name, kernels::Backend backend) {
  RunnerOptions options;
  options.directory = data_path("golden/" + name);
  options.backend = backend;
  options.max_context = 128;
  options.max_tokens = 128;
  return options;
}

// Over the positions: difference of the logits relative to their size, both root mean squares over the vocabulary.
struct Deviation {
  double median = 0, largest = 0;
};

Deviation compare(const Golden& golden, const std::vector<float>& logits, size_t vocab) {
  std::vector<double> relative;
  for (size_t i = 0; i < golden.positions.size(); ++i) {
    double difference = 0, size = 0;
    for (size_t v = 0; v < vocab; ++v) {
      const double wanted = golden.logits[i][v];
      difference += std::pow(logits[size_t(golden.positions[i]) * vocab + v] - wanted, 2);
      size += wanted * wanted;
    }
    relative.push_back(std::sqrt(difference / size));
  }
  std::sort(relative.begin(), relative.end());
  return {relative[relative.size() / 2], relative.back()};
}

class GoldenLogits : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenLogits, RefPrefillMatches) {
  const RunnerOptions options = golden_options(GetParam(), kernels::Backend::kRef);
  const auto model = must_load(options);
  Runner runner(*model, options);
  const Golden golden = load_golden(GetParam());
  const int sequence = runner.add_sequence(128);
  // Two chunks, so that yarn's and the cache's positions are used from both.
  const Deviation d =
      compare(golden, runner.prefill(sequence, golden.ids, 64, true), size_t(model->config().vocab_size));
  EXPECT_LT(d.largest, 1e-3);
}

TEST_P(GoldenLogits, RefDecodeMatches) {
  const RunnerOptions options = golden_options(GetParam(), kernels::Backend::kRef);
  const auto model = must_load(options);
  Runner runner(*model, options);
  const Golden golden = load_golden(GetParam());
  const int sequence = runner.add_sequence(128);
  std::vector<float> logits;
  for (int32_t id : golden.ids) {
    const std::vector<float> row = runner.decode({{sequence}}, {{id}});
    logits.insert(logits.end(), row.begin(), row.end());
  }
  const Deviation d = compare(golden, logits, size_t(model->config().vocab_size));
  EXPECT_LT(d.largest, 1e-3);
}

// bf16 inputs cost 2^-9 at each of some tens of roundings. Where two experts score alike the choice may turn and the
// position is lost, so the median is bounded, not the largest.
TEST_P(GoldenLogits, CpuPrefillAndDecodeStayNear) {
  for (const kernels::Isa isa : {kernels::Isa::kAvx2, kernels::Isa::kAvx512, kernels::Isa::kAvx512Bf16}) {
    if (!kernels::cpu_supports(isa)) continue;
    RunnerOptions options = golden_options(GetParam(), kernels::Backend::kCpu);
    options.isa = isa;
    const auto model = must_load(options);
    Runner runner(*model, options);
    const Golden golden = load_golden(GetParam());
    const size_t vocab = size_t(model->config().vocab_size);
    const Deviation prefill = compare(golden, runner.prefill(runner.add_sequence(128), golden.ids, 64, true), vocab);
    EXPECT_LT(prefill.median, 0.05) << kernels::to_string(isa);
    const int sequence = runner.add_sequence(128);
    std::vector<float> logits;
    for (int32_t id : golden.ids) {
      const std::vector<float> row = runner.decode({{sequence}}, {{id}});
      logits.insert(logits.end(), row.begin(), row.end());
    }
    const Deviation decode = compare(golden, logits, vocab);
    EXPECT_LT(decode.median, 0.05) << kernels::to_string(isa);
  }
}

INSTANTIATE_TEST_SUITE_P(Family, GoldenLogits,
                         ::testing::Values("v2_lite", "v2_groups", "v3_yarn", "v3_moonlight_tied", "v3_layer_freq"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace tandem::model::testing
