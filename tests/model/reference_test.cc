// The trained model against transformers' float32 results (models/tiny/README.md, Fixtures).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/model/model_runner.h"

namespace tandem::model::testing {
namespace {

RunnerOptions ref_options() {
  RunnerOptions options;
  options.backend = kernels::Backend::kRef;
  return options;
}

struct Prompt {
  std::string name;
  std::vector<int32_t> ids, greedy;
  std::vector<float> margins;
  double logprob_sum = 0;
  struct Top {
    int32_t position;
    std::vector<int32_t> ids;
    std::vector<float> logits;
  };
  std::vector<Top> tops;
};

std::vector<Prompt> load_prompts() {
  const json::Document document = load_json(data_path("tiny/reference.json"));
  std::vector<Prompt> prompts;
  for (const Json in : items(field(document.root(), "prompts"))) {
    Prompt p;
    p.name = text(field(in, "name"));
    p.ids = int_array(field(in, "ids"));
    p.greedy = int_array(field(in, "greedy"));
    p.margins = float_array(field(in, "greedy_margin"));
    p.logprob_sum = number(field(in, "logprob_sum"));
    for (const Json top : items(field(in, "top5"))) {
      p.tops.push_back(
          {int32_t(number(field(top, "pos"))), int_array(field(top, "ids")), float_array(field(top, "logits"))});
    }
    prompts.push_back(std::move(p));
  }
  return prompts;
}

// Logits of every prompt position against the fixture's four, then the log-probability of the whole prompt.
void expect_prompt_matches(const Prompt& p, const std::vector<float>& logits, size_t vocab) {
  for (const Prompt::Top& top : p.tops) {
    const float* row = logits.data() + size_t(top.position) * vocab;
    for (size_t i = 0; i < top.ids.size(); ++i) {
      const float scale = std::max(std::abs(top.logits[0]), 1.0f);
      EXPECT_NEAR(row[top.ids[i]], top.logits[i], 1e-3f * scale)
          << p.name << " position " << top.position << " token " << top.ids[i];
    }
    EXPECT_EQ(argmax({row, vocab}), top.ids[0]) << p.name << " position " << top.position;
  }
  double sum = 0;
  for (size_t i = 0; i + 1 < p.ids.size(); ++i)
    sum += log_probability({logits.data() + i * vocab, vocab}, p.ids[i + 1]);
  EXPECT_NEAR(sum, p.logprob_sum, 1e-3 * std::max(1.0, std::abs(p.logprob_sum))) << p.name;
}

TEST(TinyModelRef, LogitsAndGreedyTokensAreTheReferences) {
  const RunnerOptions options = ref_options();
  const auto model = must_load(options);
  Runner runner(*model, options);
  const size_t vocab = size_t(model->config().vocab_size);
  for (const Prompt& p : load_prompts()) {
    runner.reset();
    const int sequence = runner.add_sequence(int32_t(p.ids.size() + p.greedy.size()));
    const std::vector<float> logits = runner.prefill(sequence, p.ids, 0, true);
    expect_prompt_matches(p, logits, vocab);
    std::vector<float> last(logits.end() - std::ptrdiff_t(vocab), logits.end());
    for (size_t i = 0; i < p.greedy.size(); ++i) {
      const int32_t token = argmax(last);
      ASSERT_EQ(token, p.greedy[i]) << p.name << " step " << i << ", margin " << p.margins[i];
      last = runner.decode({{sequence}}, {{token}});
    }
  }
}

TEST(TinyModelRef, EveryTokenGoesToTheReferencesExperts) {
  const RunnerOptions options = ref_options();
  const auto model = must_load(options);
  Runner runner(*model, options);
  const int32_t experts = model->config().num_routed_experts;
  const json::Document document = load_json(data_path("tiny/routing.json"));
  for (const Json prompt : items(field(document.root(), "prompts"))) {
    const std::vector<int32_t> ids = int_array(field(prompt, "ids")), layers = int_array(field(prompt, "layers"));
    std::vector<std::vector<Json>> experts_of;  // [layer][token]
    for (const Json layer : items(field(prompt, "experts"))) experts_of.push_back(items(layer));
    runner.reset();
    const int sequence = runner.add_sequence(int32_t(ids.size()));
    // Token by token, so that the counts of a step are the choices of one token.
    for (size_t t = 0; t < ids.size(); ++t) {
      std::vector<int32_t> counts(size_t(model->config().num_layers * experts));
      runner.expert_counts = &counts;
      runner.decode({{sequence}}, {&ids[t], 1});
      EXPECT_EQ(std::count(counts.begin(), counts.begin() + experts, 0), experts) << "layer 0 is dense";
      for (size_t l = 0; l < layers.size(); ++l) {
        std::vector<int32_t> chosen;
        for (int32_t e = 0; e < experts; ++e) {
          if (counts[size_t(layers[l] * experts + e)] == 1) chosen.push_back(e);
        }
        std::vector<int32_t> wanted = int_array(experts_of[l][t]);
        std::sort(wanted.begin(), wanted.end());
        EXPECT_EQ(chosen, wanted) << "layer " << layers[l] << " token " << t;
      }
    }
  }
}

}  // namespace
}  // namespace tandem::model::testing
