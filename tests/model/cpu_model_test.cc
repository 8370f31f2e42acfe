// The fast kernels on the trained model: loss and greedy choices against the reference, and bit-identity across chunks,
// batches, threads and block sizes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/model/model_runner.h"

namespace tandem::model::testing {
namespace {

using kernels::Isa;

std::vector<Isa> isas_of_this_machine() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    if (kernels::cpu_supports(isa)) isas.push_back(isa);
  }
  return isas;
}

struct Text {
  std::vector<int32_t> ids;
  std::vector<float> nll;  // of ids[i + 1]
};

Text load_text() {
  const json::Document document = load_json(data_path("tiny/perplexity.json"));
  return {int_array(field(document.root(), "ids")), float_array(field(document.root(), "nll"))};
}

RunnerOptions with_isa(Isa isa) {
  RunnerOptions options;
  options.isa = isa;
  return options;
}

// Relative error of the mean negative log-likelihood over the first `count` tokens.
double nll_error(const RunnerOptions& options, const Text& text, size_t count) {
  const auto model = must_load(options);
  const size_t vocab = size_t(model->config().vocab_size);
  Runner runner(*model, options);
  const int sequence = runner.add_sequence(int32_t(count));
  double ours = 0, reference = 0;
  for (size_t begin = 0; begin < count; begin += 512) {
    const size_t rows = std::min<size_t>(512, count - begin);
    const std::vector<float> logits = runner.prefill(sequence, {text.ids.data() + begin, rows}, 0, true);
    for (size_t i = 0; i < rows && begin + i + 1 < count; ++i) {
      ours -= log_probability({logits.data() + i * vocab, vocab}, text.ids[begin + i + 1]);
      reference += text.nll[begin + i];
    }
  }
  return std::abs(ours - reference) / reference;
}

TEST(TinyModelCpu, LossOfTheHeldOutTextIsTheReferences) {
  if (isas_of_this_machine().empty()) GTEST_SKIP() << "needs AVX2";
  EXPECT_LT(nll_error(with_isa(kernels::best_isa()), load_text(), 4096), 0.005);
}

TEST(TinyModelCpu, WithRowsToExpertsInFp8TheLossIsWithinAPercent) {
  if (isas_of_this_machine().empty()) GTEST_SKIP() << "needs AVX2";
  RunnerOptions options = with_isa(kernels::best_isa());
  options.payload = parallel::ExchangePayload::kFp8;
  const double error = nll_error(options, load_text(), 4096);
  RecordProperty("nll_error", std::to_string(error));
  EXPECT_LT(error, 0.01);
}

TEST(TinyModelCpu, EveryInstructionSetHasTheReferencesLoss) {
  const Text text = load_text();
  for (const Isa isa : isas_of_this_machine())
    EXPECT_LT(nll_error(with_isa(isa), text, 768), 0.005) << kernels::to_string(isa);
}

TEST(TinyModelCpu, AnF8CacheCostsLessThanAPercentOfTheLoss) {
  if (isas_of_this_machine().empty()) GTEST_SKIP() << "needs AVX2";
  RunnerOptions options = with_isa(kernels::best_isa());
  options.kv_dtype = device::DType::kF8E4M3;
  const double error = nll_error(options, load_text(), 2048);
  EXPECT_LT(error, 0.01);
  EXPECT_GT(error, 1e-6) << "nothing was rounded";
}

// The gap rule: fed with the reference's tokens, the greedy choice may differ only where the reference's gap is below
// 0.05. Activations and cache in f32 leave an rms of 1e-5 in the logits; what matters more, two experts that score
// alike keep their order: one turned choice moves logits by up to 1.
struct Broken {
  int compared = 0, count = 0;
  float widest = 0;
  std::string names;

  void add(std::span<const float> logits, int32_t wanted, float gap, const std::string& name) {
    if (gap <= 0.05f) return;
    ++compared;
    if (argmax(logits) == wanted) return;
    ++count;
    widest = std::max(widest, gap);
    names += " " + name;
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

// The reference's tokens behind each prompt, as one chunk after the prompt or decoded one by one.
Broken broken_choices(const RunnerOptions& options, bool decoded) {
  const auto model = must_load(options);
  Runner runner(*model, options);
  const size_t vocab = size_t(model->config().vocab_size);
  Broken broken;
  for (const Prompt& prompt : load_prompts()) {
    runner.reset();
    const int sequence = runner.add_sequence(int32_t(prompt.ids.size() + prompt.greedy.size()));
    if (decoded) {
      std::vector<float> logits = runner.prefill(sequence, prompt.ids, 0);
      for (size_t i = 0; i < prompt.greedy.size(); ++i) {
        broken.add(logits, prompt.greedy[i], prompt.gaps[i], prompt.name);
        logits = runner.decode({{sequence}}, {{prompt.greedy[i]}});
      }
      continue;
    }
    runner.prefill(sequence, {prompt.ids.data(), prompt.ids.size() - 1}, 0);
    std::vector<int32_t> rest{prompt.ids.back()};
    rest.insert(rest.end(), prompt.greedy.begin(), prompt.greedy.end() - 1);
    const std::vector<float> rows = runner.prefill(sequence, rest, 0, true);
    for (size_t i = 0; i < prompt.greedy.size(); ++i) {
      broken.add({rows.data() + i * vocab, vocab}, prompt.greedy[i], prompt.gaps[i], prompt.name);
    }
  }
  EXPECT_GT(broken.compared, 1000);
  return broken;
}

class GapRule : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!kernels::cpu_supports(GetParam())) GTEST_SKIP() << "needs " << kernels::to_string(GetParam());
    options_.isa = GetParam();
  }
  RunnerOptions options_;
};

TEST_P(GapRule, HoldsForPrefilledTokens) {
  const Broken broken = broken_choices(options_, false);
  EXPECT_EQ(broken.count, 0) << broken.widest << broken.names;
}

TEST_P(GapRule, HoldsForDecodedTokens) {
  const Broken broken = broken_choices(options_, true);
  EXPECT_EQ(broken.count, 0) << broken.widest << broken.names;
}

// A cache rounded to bf16 (half the bytes) turns the experts of about one token in forty, whatever the rest does: the
// rule is bent at a few of a thousand choices.
TEST_P(GapRule, IsBrokenByFewTokensUnderABf16Cache) {
  options_.kv_dtype = device::DType::kBF16;
  const Broken broken = broken_choices(options_, true);
  EXPECT_LE(broken.count, 5) << broken.names;
  EXPECT_LT(broken.widest, 0.25f) << broken.names;
}

// More than the fixtures can tell: over a text no token's experts differ from the oracle's, and the logits are its own
// but for the order of sums.
TEST_P(GapRule, HasRoomBecauseExpertsAndLogitsAreTheOracles) {
  const Text text = load_text();
  constexpr size_t kTokens = 512;
  std::vector<float> logits[2];
  std::vector<int32_t> counts[2];
  for (const bool oracle : {false, true}) {
    options_.backend = oracle ? kernels::Backend::kRef : kernels::Backend::kCpu;
    const auto model = must_load(options_);
    Runner runner(*model, options_);
    counts[oracle].resize(size_t(model->config().num_layers * model->config().num_routed_experts));
    runner.expert_counts = &counts[oracle];
    logits[oracle] = runner.prefill(runner.add_sequence(kTokens), {text.ids.data(), kTokens}, 0, true);
  }
  EXPECT_EQ(counts[0], counts[1]);
  double squares = 0;
  for (size_t i = 0; i < logits[0].size(); ++i) squares += std::pow(double(logits[0][i]) - logits[1][i], 2);
  EXPECT_LT(std::sqrt(squares / double(logits[0].size())), 2e-4);
}

INSTANTIATE_TEST_SUITE_P(Isas, GapRule, ::testing::Values(Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16),
                         [](const auto& info) { return std::string(kernels::to_string(info.param)); });

// Three prompts of the fixtures, long enough for several blocks and key blocks.
std::vector<std::vector<int32_t>> some_prompts() {
  const std::vector<int32_t> ids = load_text().ids;
  return {
      {ids.begin(), ids.begin() + 301}, {ids.begin() + 400, ids.begin() + 477}, {ids.begin() + 900, ids.begin() + 901}};
}

struct Trace {
  std::vector<float> prefill, decode;
  bool operator==(const Trace&) const = default;
};

// Prefill in chunks, then eight decoded tokens, alone.
Trace trace_alone(Runner& runner, const std::vector<int32_t>& ids, int32_t chunk) {
  runner.reset();
  const int sequence = runner.add_sequence(int32_t(ids.size()) + 8);
  Trace trace;
  trace.prefill = runner.prefill(sequence, ids, chunk);
  for (int32_t token = 100; token < 108; ++token) {
    const std::vector<float> row = runner.decode({{sequence}}, {{token}});
    trace.decode.insert(trace.decode.end(), row.begin(), row.end());
  }
  return trace;
}

class TinyModelBits : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!kernels::cpu_supports(GetParam())) GTEST_SKIP() << "needs " << kernels::to_string(GetParam());
  }
};

TEST_P(TinyModelBits, ChunksDoNotChangeThem) {
  RunnerOptions options;
  options.isa = GetParam();
  const auto model = must_load(options);
  Runner runner(*model, options);
  const std::vector<int32_t> prompt = some_prompts()[0];
  const Trace whole = trace_alone(runner, prompt, 0);
  for (int32_t chunk : {1, 7, 64, 100, 300}) {
    EXPECT_EQ(trace_alone(runner, prompt, chunk), whole) << "chunks of " << chunk;
  }
}

TEST_P(TinyModelBits, CompanyInTheBatchDoesNotChangeThem) {
  RunnerOptions options;
  options.isa = GetParam();
  const auto model = must_load(options);
  Runner runner(*model, options);
  const std::vector<std::vector<int32_t>> prompts = some_prompts();
  std::vector<Trace> alone;
  for (const auto& prompt : prompts) alone.push_back(trace_alone(runner, prompt, 0));

  runner.reset();
  const size_t vocab = size_t(model->config().vocab_size);
  std::vector<int> sequences;
  for (const auto& prompt : prompts) sequences.push_back(runner.add_sequence(int32_t(prompt.size()) + 8));
  const std::vector<float> prefill = runner.prefill_batch(sequences, prompts);
  std::vector<Trace> together(prompts.size());
  for (size_t s = 0; s < prompts.size(); ++s) {
    together[s].prefill.assign(prefill.begin() + std::ptrdiff_t(s * vocab),
                               prefill.begin() + std::ptrdiff_t((s + 1) * vocab));
  }
  for (int32_t token = 100; token < 108; ++token) {
    const std::vector<float> rows = runner.decode(sequences, {{token, token, token}});
    for (size_t s = 0; s < prompts.size(); ++s) {
      together[s].decode.insert(together[s].decode.end(), rows.begin() + std::ptrdiff_t(s * vocab),
                                rows.begin() + std::ptrdiff_t((s + 1) * vocab));
    }
  }
  for (size_t s = 0; s < prompts.size(); ++s) EXPECT_EQ(together[s], alone[s]) << "sequence " << s;
}

// The row-blocking paths of the kernels: the last row of each batch size against the same row alone.
TEST_P(TinyModelBits, BatchSizeDoesNotChangeThem) {
  RunnerOptions options;
  options.isa = GetParam();
  const auto model = must_load(options);
  Runner runner(*model, options);
  const std::vector<int32_t> prompt = some_prompts()[1];
  const size_t vocab = size_t(model->config().vocab_size);
  for (int32_t size : {2, 3, 5, 8, 13, 16, 17, 31, 32}) {
    runner.reset();
    std::vector<int> sequences;
    for (int32_t s = 0; s < size; ++s) {
      sequences.push_back(runner.add_sequence(64));
      runner.prefill(sequences.back(), {prompt.data(), size_t(10 + s)}, 0);
    }
    const int alone = runner.add_sequence(64);
    runner.prefill(alone, {prompt.data(), size_t(10 + size - 1)}, 0);
    const std::vector<float> rows = runner.decode(sequences, std::vector<int32_t>(size_t(size), 200));
    const std::vector<float> row = runner.decode({{alone}}, {{200}});
    EXPECT_TRUE(std::equal(row.begin(), row.end(), rows.end() - std::ptrdiff_t(vocab))) << "batch of " << size;
  }
}

TEST_P(TinyModelBits, ThreadsAndBlockSizeDoNotChangeThem) {
  const std::vector<int32_t> prompt = some_prompts()[0];
  RunnerOptions options;
  options.isa = GetParam();
  const auto model = must_load(options);
  Runner runner(*model, options);
  const Trace wanted = trace_alone(runner, prompt, 0);
  for (const auto& [threads, block_tokens] : {std::pair{1, 16}, std::pair{3, 1}, std::pair{2, 64}}) {
    options.num_threads = threads;
    options.block_tokens = block_tokens;
    const auto other = must_load(options);
    Runner other_runner(*other, options);
    EXPECT_EQ(trace_alone(other_runner, prompt, 0), wanted) << threads << " threads, blocks of " << block_tokens;
  }
}

// So a cache may travel between servers of different machines without a trace.
TEST_P(TinyModelBits, InstructionSetsDoNotChangeThem) {
  const std::vector<int32_t> prompt = some_prompts()[0];
  RunnerOptions options;
  options.isa = Isa::kAvx2;
  const auto plain = must_load(options);
  Runner plain_runner(*plain, options);
  options.isa = GetParam();
  const auto model = must_load(options);
  Runner runner(*model, options);
  EXPECT_EQ(trace_alone(runner, prompt, 0), trace_alone(plain_runner, prompt, 0));
}

INSTANTIATE_TEST_SUITE_P(Isas, TinyModelBits, ::testing::Values(Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16),
                         [](const auto& info) { return std::string(kernels::to_string(info.param)); });

}  // namespace
}  // namespace tandem::model::testing
