#include "app/memory_plan.h"

#include <gtest/gtest.h>

#include "app/server_flags.h"

namespace tandem::app {
namespace {

constexpr int64_t kGiB = int64_t(1) << 30;

ResolvedConfig tiny(std::vector<std::string> args) {
  args.insert(args.end(), {"--model-path", TANDEM_SOURCE_DIR "/models/tiny"});
  Result<ParseOutcome> parsed = parse_flags("launch_server", "", server_flags(), args);
  EXPECT_TRUE(parsed);
  ResolveOutcome outcome = resolve(std::move(parsed)->values, {});
  EXPECT_TRUE(outcome.faults.empty());
  return std::move(outcome.config);
}

TEST(MemoryPlan, GivenTokensAreTakenAndTheLinesAddUp) {
  Result<MemoryPlan> plan = plan_memory(tiny({"--max-total-tokens", "1000", "--page-size", "16"}), 1, 4 * kGiB);
  ASSERT_TRUE(plan) << plan.error().message;
  EXPECT_EQ(plan->max_total_tokens, 992);  // whole pages
  EXPECT_EQ(plan->kv_bytes, 992 * 6 * 160 * 4);
  EXPECT_EQ(plan->lines.size(), 7u);
}

TEST(MemoryPlan, FractionBoundsThePool) {
  Result<MemoryPlan> plan = plan_memory(tiny({"--mem-fraction-static", "0.5"}), 1, 4 * kGiB);
  ASSERT_TRUE(plan) << plan.error().message;
  int64_t sum = plan->weight_bytes + plan->expert_bytes + plan->workspace_bytes + plan->exchange_bytes +
                plan->logits_bytes + plan->kv_bytes;
  EXPECT_LE(sum, 2 * kGiB);
  EXPECT_GT(sum, 2 * kGiB - (1 << 20));
}

TEST(MemoryPlan, TheRanksOfAnAttentionGroupShareOnePool) {
  const auto plan = [](std::vector<std::string> args) {
    args.insert(args.end(), {"--mem-fraction-static", "0.5", "--chunked-prefill-size", "512"});
    Result<MemoryPlan> made = plan_memory(tiny(std::move(args)), 1, 4 * kGiB);
    EXPECT_TRUE(made) << made.error().message;
    return std::move(*made);
  };
  const MemoryPlan apart = plan({"--tp-size", "2", "--dp-size", "2", "--enable-dp-attention"});
  const MemoryPlan together = plan({"--tp-size", "2"});
  const auto sum = [](const MemoryPlan& made, int64_t groups) {
    return made.weight_bytes + 2 * (made.expert_bytes + made.workspace_bytes + made.exchange_bytes) +
           groups * (made.logits_bytes + made.kv_bytes);
  };
  for (const int64_t planned : {sum(apart, 2), sum(together, 1)}) {
    EXPECT_LE(planned, 2 * kGiB);
    EXPECT_GT(planned, 2 * kGiB - (1 << 20));
  }
  EXPECT_GT(together.max_total_tokens, 2 * apart.max_total_tokens * 9 / 10);
}

TEST(MemoryPlan, TooLittleMemoryIsAnErrorThatSaysWhatToChange) {
  Result<MemoryPlan> plan = plan_memory(tiny({}), 1, 8 << 20);
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().code, ErrorCode::kExhausted);
  EXPECT_NE(plan.error().message.find("--max-total-tokens"), std::string::npos);
}

}  // namespace
}  // namespace tandem::app
