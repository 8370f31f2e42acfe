#include "kernels/sample.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "tests/kernels/support.h"

namespace tandem::kernels::test {
namespace {

// Every backend: the oracle and each instruction set.
std::vector<std::unique_ptr<Rig>> rigs() {
  std::vector<std::unique_ptr<Rig>> all;
  all.push_back(std::make_unique<Rig>(Backend::kRef, Isa::kAvx2, 2, size_t(1) << 20));
  for (const Isa isa : supported_isas()) {
    all.push_back(std::make_unique<Rig>(Backend::kCpu, isa, 2, size_t(1) << 20));
  }
  return all;
}

SampleResult sample_one(Rig& rig, std::vector<float> logits, const SampleParams& params) {
  SampleResult result;
  sample(rig.ctx, view(logits, {1, int64_t(logits.size())}), {&params, 1}, {&result, 1});
  return result;
}

SampleParams greedy() {
  SampleParams params;
  params.temperature = 0;
  return params;
}

// Share of each token over many positions of one seed.
std::map<int32_t, double> shares(Rig& rig, const std::vector<float>& logits, SampleParams params, int64_t draws) {
  std::map<int32_t, double> result;
  for (int64_t i = 0; i < draws; ++i) {
    params.position = i;
    result[sample_one(rig, logits, params).token] += 1.0 / double(draws);
  }
  return result;
}

TEST(Sample, GreedyTakesTheLargestAndTheLowerIdOfEquals) {
  for (const auto& rig : rigs()) {
    for (const size_t vocab : {1, 5, 16, 33, 1000}) {
      std::vector<float> logits = random_floats(vocab, vocab);
      const size_t best = size_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
      EXPECT_EQ(sample_one(*rig, logits, greedy()).token, int32_t(best));
      std::vector<float> flat(vocab, -3.0f);
      EXPECT_EQ(sample_one(*rig, flat, greedy()).token, 0);
      if (vocab > 20) {
        flat[7] = flat[19] = flat[vocab - 1] = 1.0f;
        EXPECT_EQ(sample_one(*rig, flat, greedy()).token, 7);
      }
    }
  }
}

TEST(Sample, BadRowsAreReportedNotSampled) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const auto& rig : rigs()) {
    for (const size_t at : {0, 3, 17, 39}) {
      for (const float temperature : {0.0f, 1.0f}) {
        SampleParams params;
        params.temperature = temperature;
        std::vector<float> logits(40, 0.5f);
        logits[at] = NAN;
        EXPECT_FALSE(sample_one(*rig, logits, params).finite);
        EXPECT_EQ(sample_one(*rig, logits, params).token, 0);
        logits[at] = inf;
        EXPECT_FALSE(sample_one(*rig, logits, params).finite);
        logits.assign(40, -inf);
        EXPECT_FALSE(sample_one(*rig, logits, params).finite);
        logits[at] = -5;  // one way out
        const SampleResult result = sample_one(*rig, logits, params);
        EXPECT_TRUE(result.finite);
        EXPECT_EQ(result.token, int32_t(at));
      }
    }
  }
}

TEST(Sample, DrawsFollowTheDistribution) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.25f), std::log(0.2f), std::log(0.05f)};
  for (const auto& rig : rigs()) {
    SampleParams params;
    params.seed = 12;
    std::map<int32_t, double> got = shares(*rig, logits, params, 20000);
    EXPECT_NEAR(got[0], 0.5, 0.015);  // four standard deviations
    EXPECT_NEAR(got[1], 0.25, 0.013);
    EXPECT_NEAR(got[3], 0.05, 0.007);
    params.temperature = 0.5f;  // probabilities squared
    const double sum = 0.25 + 0.0625 + 0.04 + 0.0025;
    got = shares(*rig, logits, params, 20000);
    EXPECT_NEAR(got[0], 0.25 / sum, 0.015);
    EXPECT_NEAR(got[2], 0.04 / sum, 0.010);
  }
}

TEST(Sample, TopKTopPAndMinPKeepTheRightTokens) {
  const std::vector<float> logits = {std::log(0.05f), std::log(0.5f), std::log(0.2f), std::log(0.25f)};
  const auto tokens = [&](Rig& rig, const SampleParams& params) {
    std::set<int32_t> seen;
    for (const auto& [token, share] : shares(rig, logits, params, 400)) seen.insert(token);
    return seen;
  };
  for (const auto& rig : rigs()) {
    SampleParams params;
    params.top_k = 2;
    EXPECT_EQ(tokens(*rig, params), (std::set<int32_t>{1, 3}));
    params.top_k = 1;
    EXPECT_EQ(tokens(*rig, params), (std::set<int32_t>{1}));
    params = SampleParams();
    params.top_p = 0.6f;
    EXPECT_EQ(tokens(*rig, params), (std::set<int32_t>{1, 3}));
    params.top_p = 0.49f;  // the first token alone reaches it
    EXPECT_EQ(tokens(*rig, params), (std::set<int32_t>{1}));
    params.top_p = 0;
    EXPECT_EQ(tokens(*rig, params), (std::set<int32_t>{1}));
    params = SampleParams();
    params.min_p = 0.45f;  // of 0.5
    EXPECT_EQ(tokens(*rig, params), (std::set<int32_t>{1, 3}));
    params.min_p = 1.0f;
    EXPECT_EQ(tokens(*rig, params), (std::set<int32_t>{1}));
    // top-p is measured on what top-k left: 0.5 / 0.75 reaches 0.6 alone.
    params = SampleParams();
    params.top_k = 2;
    params.top_p = 0.6f;
    EXPECT_EQ(tokens(*rig, params), (std::set<int32_t>{1}));
  }
}

// Top-p sorts only as far as it must; with 5,000 nearly equal tokens that is far.
TEST(Sample, TopPOverAFlatDistributionKeepsTheRightNumber) {
  std::vector<float> logits(5000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = -1e-5f * float(i);
  for (const auto& rig : rigs()) {
    SampleParams params;
    params.top_p = 0.5f;
    int32_t largest = 0;
    for (const auto& [token, share] : shares(*rig, logits, params, 200)) largest = std::max(largest, token);
    EXPECT_LT(largest, 2500);
    EXPECT_GT(largest, 2400);
  }
}

TEST(Sample, ADrawDependsOnSeedAndPositionOnly) {
  const std::vector<float> logits = random_floats(500, 3);
  std::vector<std::vector<int32_t>> by_rig;
  for (const auto& rig : rigs()) {
    std::vector<SampleParams> params(60);
    std::vector<float> rows;
    for (size_t i = 0; i < params.size(); ++i) {
      params[i].seed = i % 3;
      params[i].position = int64_t(i / 3);
      rows.insert(rows.end(), logits.begin(), logits.end());
    }
    std::vector<SampleResult> results(60);
    sample(rig->ctx, view(rows, {60, 500}), params, results);
    std::vector<int32_t> tokens;
    std::set<int32_t> distinct;
    for (size_t i = 0; i < params.size(); ++i) {
      EXPECT_EQ(sample_one(*rig, logits, params[i]).token, results[i].token);
      tokens.push_back(results[i].token);
      distinct.insert(results[i].token);
    }
    EXPECT_GT(distinct.size(), 30u);  // seeds and positions both matter
    by_rig.push_back(tokens);
  }
  for (const auto& tokens : by_rig) EXPECT_EQ(tokens, by_rig[0]);
}

TEST(Sample, PenaltiesBiasAndBansChangeTheChoice) {
  const std::vector<float> logits = {2.0f, 1.9f, 1.5f, -1.0f};
  const std::vector<int32_t> prompt = {1, 1, 999, -4}, output = {0, 0, 2};
  const std::vector<std::pair<int32_t, float>> bias = {{3, 4.0f}, {1 << 30, 5.0f}};
  const std::vector<int32_t> banned = {0, 77};
  for (const auto& rig : rigs()) {
    SampleParams params = greedy();
    params.want_logprob = true;
    params.top_logprobs = 4;
    const auto ranking = [&] {
      std::vector<int32_t> order;
      for (const auto& [id, logprob] : sample_one(*rig, logits, params).top) order.push_back(id);
      return order;
    };
    EXPECT_EQ(ranking(), (std::vector<int32_t>{0, 1, 2, 3}));
    params.banned = banned;
    EXPECT_EQ(sample_one(*rig, logits, params).token, 1);
    params.banned = {};
    params.logit_bias = bias;
    EXPECT_EQ(sample_one(*rig, logits, params).token, 3);
    params.logit_bias = {};
    params.prompt = prompt;
    params.output = output;
    params.presence_penalty = 0.2f;  // of the output only: 1.8, 1.9, 1.3
    EXPECT_EQ(ranking(), (std::vector<int32_t>{1, 0, 2, 3}));
    params.presence_penalty = 0;
    params.frequency_penalty = 0.3f;  // 1.4, 1.9, 1.2
    EXPECT_EQ(ranking(), (std::vector<int32_t>{1, 0, 2, 3}));
    params.frequency_penalty = 0;
    params.repetition_penalty = 2.0f;  // prompt and output, once each: 1.0, 0.95, 0.75, and -1 was never seen
    const SampleResult result = sample_one(*rig, logits, params);
    EXPECT_EQ(result.token, 0);
    EXPECT_NEAR(result.top[0].second - result.top[1].second, 0.05, 1e-5);
    EXPECT_NEAR(result.top[0].second - result.top[3].second, 2.0, 1e-5);
    const std::vector<int32_t> negative = {3};
    params.output = negative;  // a negative logit is multiplied: -2
    EXPECT_NEAR(sample_one(*rig, logits, params).top[3].second - sample_one(*rig, logits, params).top[0].second, -4.0,
                1e-5);
  }
}

TEST(Sample, LogprobsAreTheSoftmaxOfThePenalisedAndScaledLogits) {
  const std::vector<float> logits = random_floats(300, 6, 2.0f);
  const std::vector<int32_t> asked = {5, 299, 300, -1};
  for (const auto& rig : rigs()) {
    for (const float temperature : {0.0f, 1.0f, 0.7f}) {
      SampleParams params;
      params.temperature = temperature;
      params.top_k = 3;  // cuts the draw, not the report
      params.want_logprob = true;
      params.top_logprobs = 2;
      params.token_ids_logprob = asked;
      const double t = temperature == 0 ? 1 : temperature;
      double sum = 0;
      for (const float l : logits) sum += std::exp(l / t);
      const SampleResult result = sample_one(*rig, logits, params);
      EXPECT_NEAR(result.logprob, logits[size_t(result.token)] / t - std::log(sum), 1e-5);
      ASSERT_EQ(result.top.size(), 2u);
      EXPECT_GE(result.top[0].second, result.top[1].second);
      EXPECT_NEAR(result.top[0].second, *std::max_element(logits.begin(), logits.end()) / t - std::log(sum), 1e-5);
      ASSERT_EQ(result.token_ids.size(), 4u);
      EXPECT_NEAR(result.token_ids[1], logits[299] / t - std::log(sum), 1e-5);
      EXPECT_TRUE(std::isinf(result.token_ids[2]) && std::isinf(result.token_ids[3]));
    }
  }
}

TEST(Sample, WorkspaceOfTheStatedSizeSuffices) {
  Rig probe(Backend::kCpu, best_isa(), 3);
  Rig rig(Backend::kCpu, best_isa(), 3, sample_workspace_bytes(probe.ctx, 1001));
  std::vector<SampleParams> params(5);
  std::vector<SampleResult> results(5);
  std::vector<float> logits = random_floats(5 * 1001, 1);
  sample(rig.ctx, view(logits, {5, 1001}), params, results);
  for (const SampleResult& r : results) EXPECT_TRUE(r.finite);
}

}  // namespace
}  // namespace tandem::kernels::test
