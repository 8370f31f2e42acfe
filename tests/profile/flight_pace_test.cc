// Ranks that compute for long: work while their earlier forward passes took as long, the cause where not.
#include <gtest/gtest.h>

#include "profile/flight_explain.h"
#include "tests/profile/flight_log.h"

namespace tandem::profile {
namespace {

using namespace testing;
using Kind = FlightFinding::Kind;

// Passes of so long each, one behind the other, the last of them ended at 5 s.
Log& passes(Log& log, int count, double each_s, uint32_t num_tokens = 3, FlightStep kind = FlightStep::kDecode) {
  for (int i = 0; i < count; ++i) {
    const double begin = 5 - each_s * (count - i);
    log.vote(begin, 1 + uint64_t(i)).decision(begin, 1 + uint64_t(i));
    log.add(begin, FlightKind::kForwardBegin, 1 + uint64_t(i), -1, {num_tokens}, uint8_t(kind));
    log.add(begin + each_s, FlightKind::kForwardEnd, 1 + uint64_t(i));
  }
  return log;
}
// A pass under way since then.
Log& open_pass(Log& log, double s, uint32_t num_tokens = 3, FlightStep kind = FlightStep::kDecode) {
  log.vote(s, 9).decision(s, 9);
  return log.add(s, FlightKind::kForwardBegin, 9, -1, {num_tokens}, uint8_t(kind));
}

TEST(FlightPace, ARankThatComputesAsLongAsBeforeIsWorking) {
  Log quick(FlightRole::kDecode, 0, 3), quick_too(FlightRole::kDecode, 1, 3), slow(FlightRole::kDecode, 2, 3);
  for (Log* log : {&quick, &quick_too}) open_pass(*log, 14).add(14.1, FlightKind::kDispatch, 9, 5);
  open_pass(passes(slow, 3, 1.2), 14);
  const Explanation explanation = explain({quick, quick_too, slow});
  EXPECT_FALSE(explanation.is_stuck);
  const FlightFinding& finding = explanation.findings.at(0);
  EXPECT_EQ(finding.kind, Kind::kWorking);
  EXPECT_STREQ(to_string(finding.kind), "working");
  EXPECT_EQ(finding.sentence,
            "rank 2 (decode, pid 4711) is in a forward pass for 6.0 s (earlier ones took 1.2 s); ranks 0 and 1 wait "
            "for it");
  EXPECT_EQ(finding.waiting, std::vector<int32_t>({0, 1}));
}

// The wait of rank 0 leads over rank 1 to rank 2; neither of those that wait is named.
TEST(FlightPace, WhoWaitsForOneThatWaitsForWorkIsNotStuckEither) {
  Log first(FlightRole::kDecode, 0, 3), second(FlightRole::kDecode, 1, 3), slow(FlightRole::kDecode, 2, 3);
  open_pass(first, 14).add(14.1, FlightKind::kDispatch, 9, 5).add(14.2, FlightKind::kResults, 9, 5);
  open_pass(second, 14).add(14.1, FlightKind::kDispatch, 9, 5);
  open_pass(passes(slow, 3, 1.2), 14);
  const Explanation explanation = explain({first, second, slow});
  EXPECT_FALSE(explanation.is_stuck);
  EXPECT_EQ(explanation.findings.at(0).ranks, std::vector<int32_t>({2}));
  EXPECT_EQ(explanation.findings.at(0).waiting, std::vector<int32_t>({0, 1}));
}

TEST(FlightPace, TenTimesLongerThanBeforeIsTheCause) {
  Log quick(FlightRole::kDecode, 0, 2), slow(FlightRole::kDecode, 1, 2);
  open_pass(quick, 14).add(14, FlightKind::kDispatch, 9, 5);
  open_pass(passes(slow, 3, 0.5), 14);
  EXPECT_EQ(stuck({quick, slow}),
            Sentences({"rank 1 (decode, pid 4711) has not dispatched layer 5 of step 9 for 6.0 s: its last entry, 6.0 "
                       "s old, is 'forward of step 9 begun: decode, 3 tokens', in a forward pass for 6.0 s (earlier "
                       "ones took 0.5 s); rank 0 waits for it"}));
}

TEST(FlightPace, AShortDelayIsNoCauseHoweverManyTimesLonger) {
  Log alone(FlightRole::kDecode, 0, 1);
  open_pass(passes(alone, 3, 0.001), 18);
  EXPECT_TRUE(stuck({alone}).empty()) << "2 s are fewer than the 3 s of patience";
}

TEST(FlightPace, OneSlowPassAmongQuickOnesExcusesNothing) {
  Log alone(FlightRole::kDecode, 0, 1);
  passes(alone, 1, 4);
  open_pass(passes(alone, 4, 0.1), 14);
  ASSERT_EQ(stuck({alone}).size(), 1u);
  EXPECT_NE(stuck({alone})[0].find("(earlier ones took 0.1 s)"), std::string::npos) << stuck({alone})[0];
}

TEST(FlightPace, OfAFirstPassAndOfAnotherPhaseNothingIsKnown) {
  Log first(FlightRole::kCombined, 0, 1), other(FlightRole::kCombined, 0, 1);
  open_pass(first, 14);
  EXPECT_EQ(stuck({first}).size(), 1u);
  open_pass(passes(other, 3, 1.2), 14, 3, FlightStep::kExtend);
  EXPECT_EQ(stuck({other}).size(), 1u);
}

TEST(FlightPace, ALongPromptAfterShortOnesIsMeasuredByItsTokens) {
  Log alone(FlightRole::kPrefill, 0, 1);
  open_pass(passes(alone, 3, 0.1, 100, FlightStep::kExtend), 14, 4000, FlightStep::kExtend);
  const Explanation explanation = explain({alone});
  EXPECT_FALSE(explanation.is_stuck);
  EXPECT_EQ(explanation.findings.at(0).sentence,
            "rank 0 (prefill, pid 4711) is in a forward pass for 6.0 s (earlier ones, of fewer tokens, took 0.1 s)");
  // Where there was one as long, it says more.
  Log known(FlightRole::kPrefill, 0, 1);
  passes(known, 1, 0.5, 4000, FlightStep::kExtend);
  open_pass(passes(known, 3, 0.1, 100, FlightStep::kExtend), 14, 4000, FlightStep::kExtend);
  EXPECT_EQ(stuck({known}).size(), 1u);
}

TEST(FlightPace, AProcessThatIsStoppedIsNotWorking) {
  Log alone(FlightRole::kDecode, 0, 1);
  open_pass(passes(alone, 3, 1.2), 14).process(FlightProcess::kStopped);
  ASSERT_EQ(stuck({alone}).size(), 1u);
  EXPECT_NE(stuck({alone})[0].find("stands still"), std::string::npos);
}

TEST(FlightPace, AHandoverFromAPrefillInALongPassIsNotStuck) {
  Log decode(FlightRole::kDecode, 0, 1), prefill(FlightRole::kPrefill, 0, 1);
  decode.handover(14, FlightKind::kSent, FlightMessage::kWant, 77, 20).vote(19.9, 9);
  open_pass(passes(prefill, 3, 1.2, 100, FlightStep::kExtend), 14, 100, FlightStep::kExtend);
  const Explanation explanation = explain({decode, prefill});
  EXPECT_FALSE(explanation.is_stuck);
  const FlightFinding& wait = explanation.findings.at(0);
  EXPECT_EQ(wait.kind, Kind::kHandover);
  EXPECT_EQ(wait.sentence,
            "rank 0 (decode, pid 4711) has waited for 'source' of room 77 for 6.0 s, from 127.0.0.1:8998, rank 0 "
            "(prefill, pid 4711): its last entry, 6.0 s old, is 'forward of step 9 begun: prefill, 100 tokens', in a "
            "forward pass for 6.0 s (earlier ones took 1.2 s)");
}

}  // namespace
}  // namespace tandem::profile
