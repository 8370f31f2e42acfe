// The recorder on the trained model with several ranks: what it counts is what was routed, while experts move, too.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <optional>

#include "base/log.h"
#include "experts/files.h"
#include "experts/torch_file.h"
#include "tests/engine/rank_group_rig.h"

namespace tandem::testing {
namespace {

constexpr int32_t kTopK = 6, kLayers = 6, kExperts = 32;
constexpr size_t kPromptTokens = 70, kNewTokens = 12;

template <class T>
T answer_of(const std::function<void(std::function<void(Result<T>)>)>& ask) {
  std::atomic<bool> done = false;
  std::optional<Result<T>> answer;
  ask([&](Result<T> result) {
    answer = std::move(result);
    done = true;
    done.notify_one();
  });
  done.wait(false);
  EXPECT_TRUE(*answer) << answer->error().message;
  return std::move(**answer);
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

std::string rotated_placement_json(int32_t shift, int32_t slots) {
  std::string json = R"({"physical_to_logical_map": [)";
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    for (int32_t slot = 0; slot < slots; ++slot) {
      json += fmt::format("{}{}", slot > 0 ? "," : layer > 0 ? "],[" : "[", (slot + shift) % kExperts);
    }
  }
  return json + "]]}";
}

constexpr uint64_t kRequests = 8;

// Serves requests one after the other, each while experts move, and reads back what was recorded.
experts::LoadFile record(engine::RecorderMode mode) {
  RankGroup::Options options;
  options.num_ranks = 2;
  options.slots_per_rank = 20;
  options.num_spares = 8;
  options.balancer.recorder_mode = mode;
  options.balancer.experts_per_token = kTopK;
  options.balancer.recorder_steps = -1;
  options.balancer.layers_per_version = 1;
  options.balancer.logs_balancedness = true;
  options.balancer.dump_directory = ::testing::TempDir() + "tandem_recorder_model";
  std::filesystem::remove_all(options.balancer.dump_directory);
  RankGroup ranks(options);
  engine::ExpertBalancer& balancer = *ranks.group.balancer;
  answer_of<Ok>([&](auto done) { balancer.start_recording(done); });
  for (uint64_t id = 0; id < kRequests; ++id) {
    std::vector<int32_t> prompt;
    for (size_t i = 0; i < kPromptTokens; ++i) prompt.push_back(int32_t(100 + (id * 31 + i * 7) % 4000));
    ranks.group.group.submit(engine::SubmitCommand{greedy_request(id, prompt, kNewTokens)});
    answer_of<engine::RebalanceReply>(
        [&](auto done) { balancer.rebalance("", rotated_placement_json(int32_t(id) * 3 + 1, 40), done); });
    EXPECT_TRUE(ranks.wait_for(id + 1));
    while (balancer.view().in_progress) std::this_thread::yield();
  }
  EXPECT_GT(balancer.view().version, kRequests);
  // A request may be answered before the other rank has ended the step.
  const auto steps = [&](size_t rank) { return ranks.group.group.snapshots()[rank].forward_steps; };
  while (steps(0) != steps(1)) std::this_thread::yield();
  const std::string text = answer_of<std::string>([&](auto done) { balancer.dump_recording(done); });
  const std::vector<std::string> paths = lines_of(text);
  EXPECT_EQ(paths.size(), mode == engine::RecorderMode::kStat ? 1u : 2u);
  const auto load = experts::read_load(paths, {kLayers, kExperts, 0}, experts::StepDetail::kKeepSteps);
  EXPECT_TRUE(load) << load.error().message;
  return *load;
}

// Without the idle steps: between two requests there are as many as it takes to agree on the next placement.
std::vector<experts::ExpertLoad> steps_with_tokens(const experts::LoadFile& file) {
  std::vector<experts::ExpertLoad> steps;
  for (const experts::ExpertLoad& step : file.steps) {
    const std::span<const int64_t> last_layer = step.layer(kLayers - 1);
    if (std::ranges::any_of(last_layer, [](int64_t count) { return count > 0; })) steps.push_back(step);
  }
  return steps;
}

// C1, C2: over all ranks each layer with experts got k times the tokens, and the same experts whether they are counted
// as such or as slots whose experts change.
TEST(Recorder, C1_C2_CountsOfAllModesAreTheTokensAndAgreeWhileExpertsMove) {
  const experts::LoadFile stat = record(engine::RecorderMode::kStat);
  EXPECT_EQ(stat.dropped_passes, 0);
  // The last new token of a request is not computed on.
  const auto tokens = int64_t(kRequests * (kPromptTokens + kNewTokens - 1));
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    int64_t pairs = 0;
    for (const int64_t count : stat.load.layer(layer)) pairs += count;
    EXPECT_EQ(pairs, layer == 0 ? 0 : kTopK * tokens) << "layer " << layer;
  }
  EXPECT_EQ(steps_with_tokens(stat).size(), kRequests * (2 + kNewTokens - 1));  // a prompt is two chunks
  for (const auto mode : {engine::RecorderMode::kPerPass, engine::RecorderMode::kPerToken}) {
    const experts::LoadFile by_pass = record(mode);
    EXPECT_EQ(by_pass.load, stat.load);
    EXPECT_EQ(steps_with_tokens(by_pass), steps_with_tokens(stat));
  }
}

}  // namespace
}  // namespace tandem::testing
