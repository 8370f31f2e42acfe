// Which steps a profile records.
#include "engine/step/profile_window.h"

#include <gtest/gtest.h>

#include <string>

namespace tandem::engine {
namespace {

using parallel::StepKind;

ProfilePlan plan_of(std::optional<int64_t> num_steps, std::optional<int64_t> start_step, bool by_stage = false) {
  ProfilePlan plan;
  plan.num_steps = num_steps;
  plan.start_step = start_step;
  plan.by_stage = by_stage;
  return plan;
}

// Runs steps 1, 2, ... of the given kinds (d, e) and writes what happens: "(" opens, ")" closes, letters of recorded
// steps in capitals.
std::string run(ProfileWindow& window, const std::string& kinds) {
  std::string seen = window.is_open() ? "(" : "";
  for (size_t i = 0; i < kinds.size(); ++i) {
    const bool decode = kinds[i] == 'd';
    const ProfileWindow::Moves moves =
        window.before_step(int64_t(i) + 1, decode ? StepKind::kDecode : StepKind::kExtend);
    if (moves.closes) seen += ")";
    if (moves.opens) seen += "(";
    seen += moves.records ? (decode ? 'D' : 'E') : kinds[i];
    if (window.after_step()) seen += ")";
  }
  return seen;
}

TEST(ProfileWindow, RecordsExactlyTheStepsAskedForFromTheNextOneOn) {
  ProfileWindow window(plan_of(3, {}));
  EXPECT_TRUE(window.is_open());
  EXPECT_EQ(run(window, "dedddd"), "(DED)ddd");
  EXPECT_TRUE(window.is_done());
}

TEST(ProfileWindow, WaitsForItsStartStep) {
  ProfileWindow window(plan_of(2, 4));
  EXPECT_FALSE(window.is_open());
  EXPECT_FALSE(window.is_done());
  EXPECT_EQ(run(window, "dddddddd"), "ddd(DD)ddd");
}

TEST(ProfileWindow, AStartStepThatIsPastIsTheNextOne) {
  ProfileWindow window(plan_of(1, 0));
  EXPECT_EQ(run(window, "dd"), "(D)d");
}

TEST(ProfileWindow, WithoutANumberItEndsWhenStopped) {
  ProfileWindow window(ProfilePlan{});
  EXPECT_EQ(run(window, "dedede"), "(DEDEDE");
  EXPECT_EQ(window.stop(), ProfileStage::kAll);
  EXPECT_TRUE(window.is_done());
  EXPECT_EQ(run(window, "dd"), "dd");
}

TEST(ProfileWindow, AStopBeforeTheStartStepRecordsNothing) {
  ProfileWindow window(plan_of(2, 9));
  EXPECT_EQ(run(window, "ddd"), "ddd");
  EXPECT_FALSE(window.has_recorded());
  EXPECT_EQ(window.stop(), std::nullopt);
  EXPECT_TRUE(window.is_done());
}

TEST(ProfileWindow, StagesAreRecordedOnceEachAndApart) {
  ProfileWindow window(plan_of(2, {}, true));
  EXPECT_EQ(run(window, "eeeddded"), "(EE)e(DD)ded");
  EXPECT_TRUE(window.is_done());
}

TEST(ProfileWindow, ADecodeStepEndsAnOpenPrefillWindow) {
  ProfileWindow window(plan_of(4, {}, true));
  EXPECT_EQ(run(window, "eedddd"), "(EE)(DDDD)");
}

TEST(ProfileWindow, PrefillStepsInsideADecodeWindowAreLeftOutAndComeAfterIt) {
  ProfileWindow window(plan_of(2, {}, true));
  EXPECT_EQ(run(window, "dedee"), "(DeD)(EE)");
  EXPECT_TRUE(window.is_done());
}

TEST(ProfileWindow, AStageThatIsNotWantedIsNotWaitedFor) {
  ProfileWindow window([] {
    ProfilePlan plan = plan_of(1, {}, true);
    plan.wants_extend = false;
    return plan;
  }());
  EXPECT_EQ(run(window, "eede"), "ee(D)e");
  EXPECT_TRUE(window.is_done());
}

TEST(ProfileWindow, StagesWaitForTheStartStepToo) {
  ProfileWindow window(plan_of(1, 3, true));
  EXPECT_EQ(run(window, "eded"), "ed(E)(D)");
}

}  // namespace
}  // namespace tandem::engine
