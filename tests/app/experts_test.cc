#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "app/commands.h"
#include "app/expert_text.h"
#include "experts/files.h"

namespace tandem::app {
namespace {

using experts::EpTopology;
using experts::ExpertLoad;
using experts::ExpertPlacement;
using experts::PlacementFile;

// Layer 0 is dense; in the others expert e has 100 / (1 + e) tokens, rotated by layer.
ExpertLoad skewed_load(int32_t num_layers, int32_t num_logical) {
  ExpertLoad load{num_layers, num_logical, std::vector<int64_t>(size_t(num_layers * num_logical), 0)};
  for (int32_t layer = 1; layer < num_layers; ++layer) {
    for (int32_t expert = 0; expert < num_logical; ++expert) {
      load.tokens[size_t(layer * num_logical + (expert + layer) % num_logical)] = 10000 / (1 + expert);
    }
  }
  return load;
}

struct Outcome {
  int status;
  std::string out, error;
};

class ExpertsCommand : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = std::filesystem::temp_directory_path() / "tandem-experts-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    experts::LoadFile load;
    load.load = skewed_load(3, 16);
    load.facts.model = "a <model>";
    load.facts.num_groups = 4;
    ASSERT_TRUE(experts::write_load(path("load.json"), load));
    ASSERT_TRUE(experts::write_load(path("load.pt"), load));
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return folder_ / name; }

  std::string text_of(const std::string& name) const {
    std::ifstream in(path(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }

  // Words with a dot at their end or inside are names of files in the folder.
  Outcome run(std::vector<std::string> args) const {
    for (std::string& arg : args) {
      if (arg.find('.') != std::string::npos && arg[0] != '0') arg = path(arg);
    }
    args.insert(args.begin(), "experts");
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const int status = run_command(args);
    std::fflush(nullptr);
    return {status, testing::internal::GetCapturedStdout(), testing::internal::GetCapturedStderr()};
  }

  PlacementFile plan(const std::string& name) const {
    const auto file = experts::read_placement(path(name), {3, 16, 0});
    EXPECT_TRUE(file) << file.error().message;
    return file ? *file : PlacementFile{};
  }

 private:
  std::filesystem::path folder_;
};

TEST_F(ExpertsCommand, APlanIsWrittenAndBetterThanTheTrivialOne) {
  const Outcome outcome =
      run({"plan", "--load", "load.pt", "--slots", "24", "--gpus", "8", "--nodes", "2", "--output", "plan.json"});
  EXPECT_EQ(outcome.status, 0) << outcome.error;
  for (const char* part : {"3 layers of 16 experts, 1 step, ", "tandem: 24 slots on 8 ranks of 2 nodes, planned in ",
                           "before     after", "least balanced layer", "slots moved ", "written "}) {
    EXPECT_NE(outcome.out.find(part), std::string::npos) << part << " in\n" << outcome.out;
  }
  const PlacementFile file = plan("plan.json");
  const EpTopology topology{2, 8, 3};
  ASSERT_TRUE(experts::validate(file.placement, topology));
  const ExpertLoad load = skewed_load(3, 16);
  const double planned = experts::balancedness(load, file.placement, topology).mean;
  EXPECT_GT(planned, 0.9);
  EXPECT_LT(experts::balancedness(load, experts::trivial_placement(3, 16, 24), topology).mean, 0.75);
  EXPECT_DOUBLE_EQ(file.facts.balancedness, planned);
  EXPECT_EQ(file.facts.num_gpus, 8);
  EXPECT_EQ(file.facts.planner, "tandem");
}

TEST_F(ExpertsCommand, ARepairedPlanKeepsMostSlots) {
  ASSERT_EQ(run({"plan", "--load", "load.json", "--slots", "24", "--gpus", "8", "--algorithm", "deepseek", "--output",
                 "old.pt"})
                .status,
            0);
  const Outcome outcome = run({"plan", "--load", "load.json", "--slots", "24", "--gpus", "8", "--from", "old.pt",
                               "--target", "0.99", "--budget", "2", "--output", "new.json"});
  EXPECT_EQ(outcome.status, 0) << outcome.error;
  const PlacementFile before = plan("old.pt"), after = plan("new.json");
  EXPECT_EQ(after.facts.epoch, before.facts.epoch + 1);
  EXPECT_EQ(after.facts.planner, "repair");
  EXPECT_GE(after.facts.balancedness, before.facts.balancedness);
  for (size_t layer = 0; layer < 3; ++layer) {
    int changed = 0;
    for (size_t slot = layer * 24; slot < (layer + 1) * 24; ++slot) {
      changed += before.placement.logical_of_slot[slot] != after.placement.logical_of_slot[slot] ? 1 : 0;
    }
    EXPECT_LE(changed, 2);
  }
}

TEST_F(ExpertsCommand, GroupsComeFromTheLoadFileOrTheFlag) {
  const std::vector<std::string> args{"plan",
                                      "--load",
                                      "load.json",
                                      "--slots",
                                      "24",
                                      "--gpus",
                                      "8",
                                      "--nodes",
                                      "4",
                                      "--algorithm",
                                      "deepseek_hierarchical"};
  EXPECT_EQ(run(args).status, 0);  // 4 groups on 4 nodes
  std::vector<std::string> wrong = args;
  wrong.insert(wrong.end(), {"--groups", "2"});
  EXPECT_EQ(run(wrong).status, 2);
}

TEST_F(ExpertsCommand, TheSglangFormHasTheMapAlone) {
  const Outcome outcome =
      run({"plan", "--load", "load.json", "--slots", "16", "--gpus", "4", "--sglang", "--output", "plan.json"});
  EXPECT_EQ(outcome.status, 0) << outcome.error;
  EXPECT_TRUE(text_of("plan.json").starts_with("{\n  \"physical_to_logical_map\": [\n    [0, "));
  EXPECT_EQ(text_of("plan.json").find("crc32"), std::string::npos);
}

TEST_F(ExpertsCommand, FaultsAreOneLine) {
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {{"plan"}, "argument --load is required"},
      {{"plan", "--load", "load.json"}, "argument --slots is required"},
      {{"plan", "--load", "load.json", "--slots", "20", "--gpus", "8"}, "20 slots do not divide over 8 ranks"},
      {{"plan", "--load", "load.json", "--slots", "24", "--gpus", "8", "--nodes", "3"},
       "8 ranks do not divide over 3 nodes"},
      {{"plan", "--load", "load.json", "--slots", "8", "--gpus", "8"}, "8 ranks of 1 slots cannot hold 16 experts"},
      {{"plan", "--load", "load.json", "--slots", "0", "--gpus", "8"}, "argument --slots: 0 is not in [1, 1048576]"},
      {{"plan", "--load", "none.json", "--slots", "24", "--gpus", "8"}, path("none.json") + ": no such file"},
      {{"plan", "--load", "load.json", "--slots", "24", "--gpus", "8", "--from", "load.pt"},
       path("load.pt") + ": is a load, not a placement"},
      {{"plan", "--load", "load.json", "--slots", "24", "--gpus", "8", "--output", "plan.txt"},
       path("plan.txt") + ": should end in .json or .pt"},
      {{"show"}, "show: which file?"},
      {{"show", "load.json", "--gpus", "3"}, "16 slots do not divide over 3 ranks"},
      {{"show", "load.json", "--output", "heat.png"}, path("heat.png") + ": should end in .html or .svg"},
  };
  for (const auto& [args, message] : cases) {
    const Outcome outcome = run(args);
    EXPECT_EQ(outcome.status, 2) << message;
    EXPECT_EQ(outcome.error, "tandem experts: error: " + message + "\n");
  }
  EXPECT_EQ(run({"draw"}).status, 2);
  EXPECT_NE(
      run({"plan", "--load", "load.json", "--slots", "24", "--gpus", "8", "--algorithm", "x"}).error.find("tandem"),
      std::string::npos);
}

TEST_F(ExpertsCommand, ALoadIsShownLayerByLayer) {
  const Outcome outcome = run({"show", "load.pt", "--gpus", "4"});
  EXPECT_EQ(outcome.status, 0) << outcome.error;
  EXPECT_NE(outcome.out.find("      0          no load\n"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("      1           33,804      4.73      0.764         1         0.446"),
            std::string::npos)
      << outcome.out;
  EXPECT_NE(outcome.out.find("balancedness  0.480 (least "), std::string::npos) << outcome.out;
}

TEST_F(ExpertsCommand, APlacementIsShownWithItsReplicas) {
  ASSERT_EQ(run({"plan", "--load", "load.json", "--slots", "24", "--gpus", "8", "--output", "plan.pt"}).status, 0);
  const Outcome outcome = run({"show", "plan.pt"});
  EXPECT_EQ(outcome.status, 0) << outcome.error;
  EXPECT_NE(outcome.out.find("3 layers of 16 experts in 24 slots"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("by tandem from load.json, balancedness "), std::string::npos) << outcome.out;
  EXPECT_EQ(run({"show", "plan.pt", "--output", "heat.svg"}).status, 2);
  EXPECT_EQ(run({"show", "load.json", "--placement", "plan.pt"}).status, 0);  // its ranks come from the file
}

TEST_F(ExpertsCommand, AHeatMapHasACellPerExpertAndRankAndNothingFromOutside) {
  ASSERT_EQ(run({"show", "load.json", "--gpus", "4", "--output", "heat.html"}).status, 0);
  const std::string html = text_of("heat.html");
  size_t titles = 0;
  for (size_t at = 0; (at = html.find("</title></path>", at)) != std::string::npos; ++at) ++titles;
  EXPECT_EQ(titles, size_t(2 * (16 + 4) + 2 + 2 * 2));  // loaded cells, rows without load, bars
  EXPECT_NE(html.find("<title>layer 1, expert 1: 10,000 (4.73 x mean)</title>"), std::string::npos);
  EXPECT_NE(html.find("prefers-color-scheme:dark"), std::string::npos);
  EXPECT_NE(html.find("a &lt;model&gt;"), std::string::npos);
  for (const char* outside : {"<script", "src=", "url(http", "@import", "<link", "a <model>"}) {
    EXPECT_EQ(html.find(outside), std::string::npos) << outside;
  }
  ASSERT_EQ(run({"show", "load.json", "--output", "heat.svg"}).status, 0);
  EXPECT_EQ(text_of("heat.svg").substr(0, 39), "<svg xmlns=\"http://www.w3.org/2000/svg\"");
}

TEST(ExpertText, NumbersAreGroupedByThousands) {
  EXPECT_EQ(workflow::grouped(0), "0");
  EXPECT_EQ(workflow::grouped(999), "999");
  EXPECT_EQ(workflow::grouped(1000), "1,000");
  EXPECT_EQ(workflow::grouped(-123456), "-123,456");
  EXPECT_EQ(workflow::grouped(1234567), "1,234,567");
}

}  // namespace
}  // namespace tandem::app
