#include "workflow/samples.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/workflow/made_samples.h"

namespace tandem::workflow {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Measure, SteadyDecodeGivesTheSameFigureByCountersAndByStepTime) {
  const auto figures = measure(steady_decode({8, 8}, 10.0, 21), Role::kDecode);
  ASSERT_TRUE(figures.has_value()) << figures.error().message;
  EXPECT_NEAR(figures->step_ms, 10.0, 1e-6);
  EXPECT_NEAR(figures->tokens_per_s, 1600.0, 1e-6);
  EXPECT_NEAR(figures->per_rank_by_counters, 800.0, 1e-6);
  EXPECT_NEAR(figures->per_rank_by_steps, 800.0, 1e-6);
  EXPECT_NEAR(figures->disagreement(), 0.0, 1e-6);
  EXPECT_NEAR(figures->variation, 0, 1e-9);
  EXPECT_THAT(figures->running, ElementsAre(DoubleNear(8, 1e-9), DoubleNear(8, 1e-9)));
  EXPECT_NEAR(figures->imbalance, 0, 1e-9);
}

// 285 + 256 + 254 + 265 + 271 + 227 + 221 + 269 requests, 65 ms a step, 8 GPUs: the seeds' worked example.
TEST(Measure, GivesTheWorkedExampleOfTheSeeds) {
  const auto figures = measure(steady_decode({285, 256, 254, 265, 271, 227, 221, 269}, 65.0, 21), Role::kDecode);
  ASSERT_TRUE(figures.has_value());
  EXPECT_NEAR(figures->per_rank_by_steps, 3938.0, 0.5);
  EXPECT_NEAR(figures->per_rank_by_counters, 3938.0, 0.5);
}

TEST(Measure, TokensThatRunningRequestsDoNotExplainShowAsDisagreement) {
  std::vector<Sample> samples = steady_decode({8, 8}, 10.0, 21);
  for (Sample& sample : samples) sample.instances[0].ranks[1].running = 4;
  const auto figures = measure(samples, Role::kDecode);
  ASSERT_TRUE(figures.has_value());
  EXPECT_NEAR(figures->disagreement(), 0.25, 1e-6);
  EXPECT_NEAR(figures->imbalance, 8.0 / 6 - 1, 1e-9);
}

TEST(Measure, PrefillCountsTheTokensOfItsSteps) {
  std::vector<Sample> samples = steady_decode({1}, 100.0, 21);
  for (Sample& sample : samples) {
    sample.instances[0].role = Role::kPrefill;
    RankSample& rank = sample.instances[0].ranks[0];
    rank.prompt_tokens = rank.forward_steps * 512;
  }
  const auto figures = measure(samples, Role::kPrefill);
  ASSERT_TRUE(figures.has_value());
  EXPECT_NEAR(figures->per_rank_by_counters, 5120.0, 1e-6);
  EXPECT_NEAR(figures->per_rank_by_steps, 5120.0, 1e-6);
}

TEST(Measure, AStallInTheMiddleShowsAsVariation) {
  std::vector<Sample> samples = steady_decode({8}, 10.0, 21);
  for (size_t i = 10; i < samples.size(); ++i) samples[i].at_s += 5;
  const auto figures = measure(samples, Role::kDecode);
  ASSERT_TRUE(figures.has_value());
  EXPECT_GT(figures->variation, 0.3);
}

TEST(Measure, LongStepsDoNotCountAsVariation) {
  // Three steps a second in bursts: a tenth of the window holds two or three of them.
  std::vector<Sample> samples = steady_decode({8}, 10.0, 61);
  for (size_t i = 0; i < samples.size(); ++i) {
    samples[i].at_s = double(i) / 6;
    samples[i].instances[0].ranks[0].forward_steps = i / 2;
    samples[i].instances[0].ranks[0].generated_tokens = i / 2 * 8;
  }
  const auto figures = measure(samples, Role::kDecode);
  ASSERT_TRUE(figures.has_value());
  EXPECT_LT(figures->variation, 0.05);
}

TEST(Measure, ARestartedInstanceIsAnErrorThatNamesIt) {
  std::vector<Sample> samples = steady_decode({8}, 10.0, 21);
  for (size_t i = 15; i < samples.size(); ++i) samples[i].instances[0].ranks[0].forward_steps = i;
  const auto figures = measure(samples, Role::kDecode);
  ASSERT_FALSE(figures.has_value());
  EXPECT_THAT(figures.error().message, HasSubstr("decode instance 0 restarted at"));
}

TEST(Measure, AnInstanceThatStandsStillGivesNothing) {
  std::vector<Sample> still = steady_decode({8}, 10.0, 21);
  for (Sample& sample : still) sample.instances[0].ranks[0] = still[0].instances[0].ranks[0];
  const auto figures = measure(still, Role::kDecode);
  ASSERT_TRUE(figures.has_value());
  EXPECT_EQ(figures->tokens_per_s, 0);
  EXPECT_EQ(figures->step_ms, 0);
}

TEST(Measure, TooFewSamplesOrNoInstanceIsAnError) {
  EXPECT_THAT(measure(steady_decode({8}, 10.0, 10), Role::kDecode).error().message, HasSubstr("at least 11"));
  EXPECT_THAT(measure(steady_decode({8}, 10.0, 21), Role::kPrefill).error().message, HasSubstr("no prefill"));
}

constexpr const char* kState =
    R"({"running": 3, "queued": 1, "prealloc": 0, "used_tokens": 20, "total_tokens": 100, "generated_tokens": 7,
        "prompt_tokens_computed": 9, "forward_steps": 11, "retractions": 2, "failed_transfers": 1, "profiling": true})";

TEST(ReadSample, TakesARoutersFleet) {
  const std::string text = std::string(R"({"internal_states": [], "prefill": [{"internal_states": [)") + kState +
                           R"(]}], "decode": [{"internal_states": [)" + kState + "," + kState + "]}]}";
  auto document = json::Document::parse(text, "test");
  ASSERT_TRUE(document.has_value());
  const auto sample = read_sample(document->root(), 1.5);
  ASSERT_TRUE(sample.has_value()) << sample.error().message;
  ASSERT_EQ(sample->instances.size(), 2u);
  EXPECT_EQ(sample->instances[0].role, Role::kPrefill);
  EXPECT_EQ(sample->instances[1].role, Role::kDecode);
  EXPECT_TRUE(sample->instances[1].profiling);
  ASSERT_EQ(sample->instances[1].ranks.size(), 2u);
  EXPECT_EQ(sample->instances[1].ranks[1].generated_tokens, 7u);
  EXPECT_EQ(sample->instances[1].ranks[1].failed_transfers, 1u);
}

TEST(ReadSample, TakesOneServerByItsMode) {
  const std::string text = std::string(R"({"disaggregation_mode": "decode", "internal_states": [)") + kState + "]}";
  auto document = json::Document::parse(text, "test");
  ASSERT_TRUE(document.has_value());
  const auto sample = read_sample(document->root(), 0);
  ASSERT_TRUE(sample.has_value());
  EXPECT_EQ(sample->instances[0].role, Role::kDecode);
}

TEST(ReadSample, NamesWhatIsMissing) {
  auto document = json::Document::parse(R"({"internal_states": [{"running": 1}]})", "test");
  ASSERT_TRUE(document.has_value());
  EXPECT_THAT(read_sample(document->root(), 0).error().message, HasSubstr("\"queued\""));
  document = json::Document::parse(R"({"decode": [{}]})", "test");
  EXPECT_THAT(read_sample(document->root(), 0).error().message, HasSubstr("internal_states"));
}

}  // namespace
}  // namespace tandem::workflow
