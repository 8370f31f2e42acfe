// The explanation of logs made by hand: which sentence each kind of hang gives.
#include <gtest/gtest.h>

#include "base/json.h"
#include "profile/flight_explain.h"
#include "tests/profile/flight_log.h"

namespace tandem::profile {
namespace {

using namespace testing;
using Kind = FlightFinding::Kind;

// Through a step with one layer of experts.
Log& step(Log& log, double s, uint64_t number) {
  log.vote(s, number).decision(s, number).add(s, FlightKind::kForwardBegin, number);
  log.add(s, FlightKind::kDispatch, number, 5).add(s, FlightKind::kResults, number, 5);
  return log.add(s, FlightKind::kForwardEnd, number);
}

TEST(FlightExplain, NamesTheRankThatHasNotVoted) {
  std::vector<FlightLog> logs;
  for (int32_t rank = 0; rank < 3; ++rank) {
    Log log(FlightRole::kDecode, rank, 4, rank / 2, 2);
    step(log, 7, 811);
    logs.push_back(log.vote(7.7, 812));
  }
  Log late(FlightRole::kDecode, 3, 4, 1, 2);
  late.vote(7, 811).decision(7, 811).add(7, FlightKind::kDispatch, 811, 5).add(7.5, FlightKind::kResults, 811, 5);
  logs.push_back(late);
  EXPECT_EQ(stuck(logs), Sentences({"rank 3 (decode node 1, pid 4712) has not voted for step 812 for 12.3 s: its last "
                                    "entry, 12.5 s old, is 'results of layer 5 in step 811'; ranks 0, 1 and 2 wait "
                                    "for it"}));
  const FlightFinding finding = explain(logs).findings.at(0);
  EXPECT_EQ(finding.kind, Kind::kRankMissing);
  EXPECT_EQ(finding.ranks, std::vector<int32_t>({3}));
  EXPECT_EQ(finding.waiting, std::vector<int32_t>({0, 1, 2}));
  EXPECT_EQ(finding.step, 812u);
  EXPECT_EQ(finding.operation, "vote");
}

TEST(FlightExplain, YoungWaitsAreWorkUnderWay) {
  Log quick(FlightRole::kDecode, 0, 2), slow(FlightRole::kDecode, 1, 2);
  step(quick, 17, 4).vote(17.5, 5);
  slow.vote(17, 4).decision(17, 4).add(17, FlightKind::kDispatch, 4, 5);
  const Explanation explanation = explain({quick, slow});
  EXPECT_FALSE(explanation.is_stuck);
  EXPECT_EQ(explanation.findings.at(0).sentence,
            "the decode server of rank 0 (decode, pid 4711) works: decision for step 4: decode, 12 tokens");
}

TEST(FlightExplain, AStoppedProcessIsNamedAtOnceWithItsState) {
  Log quick(FlightRole::kDecode, 0, 2), stopped(FlightRole::kDecode, 1, 2, 1, 2);
  step(quick, 19, 4).vote(19.5, 5);
  step(stopped, 19, 4).process(FlightProcess::kStopped);
  EXPECT_EQ(stuck({quick, stopped}),
            Sentences({"rank 1 (decode node 1, pid 4712, stopped) has not voted for step 5 for 0.5 s: its last entry, "
                       "1.0 s old, is 'forward of step 4 done'; rank 0 waits for it"}));
}

// Ranks 0 and 1 wait for 2, which waits for 3: only 3 is named, and all three wait.
TEST(FlightExplain, FollowsTheWaitsToTheRankThatIsFurthestBehind) {
  std::vector<FlightLog> logs;
  for (int32_t rank = 0; rank < 4; ++rank) {
    Log log(FlightRole::kDecode, rank, 4);
    log.vote(5, 9).decision(5, 9).add(5, FlightKind::kForwardBegin, 9);
    if (rank < 3) log.add(6, FlightKind::kDispatch, 9, 5);
    if (rank < 2) log.add(7, FlightKind::kResults, 9, 5);
    logs.push_back(log);
  }
  EXPECT_EQ(stuck(logs), Sentences({"rank 3 (decode, pid 4711) has not dispatched layer 5 of step 9 for 14.0 s: its "
                                    "last entry, 15.0 s old, is 'forward of step 9 begun: nothing to run'; ranks 0, 1 "
                                    "and 2 wait for it"}));
}

TEST(FlightExplain, NamesTheRankWhoseExpertsHaveNotAnswered) {
  Log first(FlightRole::kCombined, 0, 2), second(FlightRole::kCombined, 1, 2);
  first.vote(5, 9).decision(5, 9).add(5, FlightKind::kDispatch, 9, 5).add(6, FlightKind::kResults, 9, 5);
  second.vote(5, 9).decision(5, 9).add(5, FlightKind::kDispatch, 9, 5);
  EXPECT_EQ(stuck({first, second}),
            Sentences({"rank 1 (combined, pid 4711) has not given results for layer 5 of step 9 for 14.0 s: its last "
                       "entry, 15.0 s old, is 'dispatch of layer 5 in step 9'; rank 0 waits for it"}));
}

// The second half of a split batch is on a channel of its own, and one layer behind.
TEST(FlightExplain, ChannelsOfASplitBatchAreToldApart) {
  Log first(FlightRole::kDecode, 0, 2), second(FlightRole::kDecode, 1, 2);
  for (Log* log : {&first, &second}) {
    log->vote(5, 9).decision(5, 9).add(5, FlightKind::kDispatch, 9, 5, {0}).add(5, FlightKind::kDispatch, 9, 5, {1});
    log->add(5, FlightKind::kResults, 9, 5, {0}).add(5, FlightKind::kResults, 9, 5, {1});
  }
  first.add(6, FlightKind::kDispatch, 9, 6, {0}).add(6, FlightKind::kDispatch, 9, 6, {1});
  second.add(6, FlightKind::kDispatch, 9, 6, {0});
  const std::vector<std::string> sentences = stuck({first, second});
  ASSERT_EQ(sentences.size(), 1u);
  EXPECT_NE(sentences[0].find("rank 1 (decode, pid 4711) has not dispatched layer 6 of step 9"), std::string::npos)
      << sentences[0];
}

TEST(FlightExplain, NamesTheMemberThatHasNotComeToItsAttentionGroup) {
  std::vector<FlightLog> logs;
  for (int32_t rank = 0; rank < 4; ++rank) {
    Log log(FlightRole::kDecode, rank, 4);
    log.attention_size(2).vote(5, 9).decision(5, 9).add(5, FlightKind::kAttention, 9, 3, {100});
    // The other group is far ahead, and waits for the rows of the layer.
    if (rank < 2) log.add(6, FlightKind::kAttention, 9, 3, {101}).add(6, FlightKind::kDispatch, 9, 3);
    if (rank == 2) log.add(6, FlightKind::kAttention, 9, 3, {101});
    logs.push_back(log);
  }
  EXPECT_EQ(stuck(logs), Sentences({"rank 3 (decode, pid 4711) has not come to the attention of layer 3 of step 9 for "
                                    "14.0 s: its last entry, 15.0 s old, is 'attention of layer 3 in step 9'; ranks "
                                    "0, 1 and 2 wait for it"}));
}

TEST(FlightExplain, ARankWithoutARecordingIsNamedByThoseThatWait) {
  Log first(FlightRole::kDecode, 0, 4), second(FlightRole::kDecode, 1, 4);
  for (Log* log : {&first, &second}) {
    log->vote(5, 9).decision(5, 9).add(5, FlightKind::kDispatch, 9, 5);
    log->missing(5.1, FlightKind::kDispatch, 9, 5, {2, 3}).missing(5.2, FlightKind::kDispatch, 9, 5, {3});
  }
  EXPECT_EQ(stuck({first, second}),
            Sentences({"rank 3 (decode, no recording of it here) has not dispatched layer 5 of step 9 for 15.0 s; "
                       "ranks 0 and 1 wait for it"}));
}

TEST(FlightExplain, RanksWithoutARecordingAreNamedTogether) {
  Log first(FlightRole::kDecode, 0, 4), second(FlightRole::kDecode, 1, 4);
  for (Log* log : {&first, &second}) log->vote(5, 9).missing(5.1, FlightKind::kVote, 9, -1, {2, 3});
  EXPECT_EQ(stuck({first, second}), Sentences({"ranks 2 and 3 (decode, no recording of them here) have not voted for "
                                               "step 9 for 15.0 s; ranks 0 and 1 wait for them"}));
}

// A header may say that there are a million ranks, and a note may name any of them.
TEST(FlightExplain, ManyRanksWithoutRecordingsTakeNoTime) {
  std::vector<FlightLog> logs;
  for (int32_t rank = 0; rank < 16; ++rank) {
    Log log(FlightRole::kDecode, rank, 1 << 20);
    log.vote(5, 9).decision(5, 9);
    for (uint32_t channel = 0; channel < 2000; ++channel) log.add(5, FlightKind::kDispatch, 9, 5, {channel});
    logs.push_back(log.missing(5.1, FlightKind::kDispatch, 9, 5, {77, 0xffffffff, 1u << 20}));
  }
  EXPECT_EQ(stuck(logs),
            Sentences({"rank 77 (decode, no recording of it here) has not dispatched layer 5 of step 9 for "
                       "15.0 s; ranks 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14 and 15 wait for it"}));
}

TEST(FlightExplain, WhatWasSentAndDoesNotArriveIsTheConnection) {
  Log first(FlightRole::kDecode, 0, 2), second(FlightRole::kDecode, 1, 2, 1, 2);
  first.vote(5, 9).decision(5, 9).add(5, FlightKind::kDispatch, 9, 5);
  first.missing(5.1, FlightKind::kDispatch, 9, 5, {1});
  second.vote(5, 9).decision(5, 9).add(5, FlightKind::kDispatch, 9, 5).add(5, FlightKind::kResults, 9, 5);
  const std::vector<std::string> sentences = stuck({first, second});
  ASSERT_EQ(sentences.size(), 2u);  // rank 1 waits for the results of rank 0, which has nothing to compute them from
  EXPECT_EQ(sentences[0],
            "rank 0 (decode, pid 4711) has not given results for layer 5 of step 9 for 15.0 s: its last entry, 14.9 s "
            "old, is 'waits for rows of layer 5 of step 9'; rank 1 waits for it");
  EXPECT_EQ(sentences[1],
            "rank 1 (decode node 1, pid 4712) has dispatched layer 5 of step 9, but rank 0 (decode, pid 4711) has "
            "waited for it for 15.0 s: it does not arrive, so look at the connection between them");
}

TEST(FlightExplain, DecisionsThatDifferAreSaidFirst) {
  Log first(FlightRole::kDecode, 0, 2), second(FlightRole::kDecode, 1, 2);
  step(first, 5, 8).vote(6, 9).add(6, FlightKind::kDecision, 9, -1, {12}, uint8_t(FlightStep::kDecode)).vote(7, 10);
  step(second, 5, 8).vote(6, 9).add(6, FlightKind::kDecision, 9, -1, {}, uint8_t(FlightStep::kNone));
  const std::vector<std::string> sentences = stuck({first, second});
  ASSERT_EQ(sentences.size(), 2u);
  EXPECT_EQ(sentences[0],
            "the ranks of the decode server decided differently: rank 0 (decode, pid 4711) has 'decision for step 9: "
            "decode, 12 tokens', rank 1 (decode, pid 4711) has 'decision for step 9: nothing to run'");
}

TEST(FlightExplain, AProcessThatEndedWithoutAWordIsNamed) {
  Log alone(FlightRole::kDecode, 0, 1);
  step(alone, 5, 8).process(FlightProcess::kGone);
  EXPECT_EQ(stuck({alone}), Sentences({"the process of rank 0 (decode, pid 4711, gone) ended without a word: its last "
                                       "entry, 0.0 s old, is 'forward of step 8 done'"}));
}

// All were killed long after they had got stuck, or the files come from another machine: no entry is younger.
TEST(FlightExplain, AfterTheEndOfAllTheRankThatWasBehindIsNamed) {
  for (const FlightProcess process : {FlightProcess::kGone, FlightProcess::kUnknown}) {
    Log first(FlightRole::kDecode, 0, 2), second(FlightRole::kDecode, 1, 2, 1, 2);
    step(first, 5, 8).vote(5, 9).process(process);
    step(second, 5, 8).process(process);
    const std::vector<std::string> sentences = stuck({first, second});
    ASSERT_FALSE(sentences.empty());
    EXPECT_NE(sentences[0].find("has not voted for step 9 for 0.0 s"), std::string::npos) << sentences[0];
    EXPECT_TRUE(sentences[0].starts_with("rank 1 (decode node 1, pid 4712")) << sentences[0];
  }
}

TEST(FlightExplain, ARankThatEndedInOrderIsNotStuck) {
  Log alone(FlightRole::kDecode, 0, 1);
  step(alone, 5, 8).closed();
  const Explanation explanation = explain({alone});
  EXPECT_FALSE(explanation.is_stuck);
  EXPECT_EQ(explanation.findings.at(0).sentence, "the decode server of rank 0 (decode, pid 4711, ended) has ended");
}

TEST(FlightExplain, AnAncestorThatDiedIsPastWhereItsServerLivesAgain) {
  Log dead(FlightRole::kDecode, 0, 1), alive(FlightRole::kDecode, 0, 1);
  step(dead, 5, 8).group(77).process(FlightProcess::kGone);
  step(alive, 19.9, 8);
  const Explanation explanation = explain({dead, alive});
  EXPECT_FALSE(explanation.is_stuck);
  EXPECT_EQ(explanation.rows.size(), 1u);
}

TEST(FlightExplain, ALivingRankThatDoesNothingIsNamed) {
  Log alone(FlightRole::kPrefill, 0, 1);
  alone.vote(5, 9).decision(5, 9).add(5, FlightKind::kForwardBegin, 9, -1, {100}, uint8_t(FlightStep::kExtend));
  EXPECT_EQ(stuck({alone}),
            Sentences({"rank 0 (prefill, pid 4711) waits for nobody and has done nothing for 15.0 s: its last entry, "
                       "15.0 s old, is 'forward of step 9 begun: prefill, 100 tokens'"}));
}

TEST(FlightExplain, ARankThatGaveUpSaysWhy) {
  Log alone(FlightRole::kDecode, 0, 2);
  alone.vote(5, 9).missing(5.1, FlightKind::kVote, 9, -1, {1});
  alone.add(19, FlightKind::kEnd, 9);
  alone.add(19, FlightKind::kText, 9, -1, {0x65646f6e, 0x77203120, 0x6c207361, 0x74736f});
  EXPECT_EQ(stuck({alone}),
            Sentences({"rank 1 (decode, no recording of it here) has not voted for step 9 for 15.0 s; rank 0 waits for "
                       "it",
                       "rank 0 (decode, pid 4711) gave up at step 9: node 1 was lost"}));
}

TEST(FlightExplain, RanksThatGaveUpInAForwardStillNameTheRankTheyWaitedFor) {
  std::vector<FlightLog> logs;
  for (int32_t rank = 0; rank < 2; ++rank) {
    Log log(FlightRole::kDecode, rank, 3);
    log.vote(5, 9).decision(5, 9).add(5, FlightKind::kDispatch, 9, 5);
    log.add(18, FlightKind::kForwardEnd, 9, -1, {}, 1).add(18, FlightKind::kEnd, 9);
    log.add(18, FlightKind::kText, 9, -1, {0x74736f6c});
    logs.push_back(log.closed());
  }
  Log frozen(FlightRole::kDecode, 2, 3, 1, 2);
  logs.push_back(frozen.vote(5, 9).decision(5, 9).process(FlightProcess::kStopped));
  EXPECT_EQ(stuck(logs),
            Sentences({"rank 2 (decode node 1, pid 4712, stopped) has not dispatched layer 5 of step 9 for "
                       "15.0 s: its last entry, 15.0 s old, is 'decision for step 9: decode, 12 tokens'; "
                       "ranks 0 and 1 wait for it",
                       "ranks 0 and 1 of the decode server gave up at step 9: lost"}));
}

std::string state_of(const std::array<uint32_t, 8>& decision, FlightStep kind) {
  Log alone(FlightRole::kDecode, 0, 1);
  alone.vote(19.9, 9).add(19.9, FlightKind::kDecision, 9, -1, decision, uint8_t(kind)).vote(19.99, 10);
  const Explanation explanation = explain({alone});
  EXPECT_FALSE(explanation.is_stuck);
  return explanation.findings.at(0).sentence;
}

TEST(FlightExplain, WaitsThatWereAskedForAreNotStuck) {
  const std::string of = "the decode server of rank 0 (decode, pid 4711) ";
  EXPECT_EQ(state_of({}, FlightStep::kNone), of + "is idle: decision for step 9: nothing to run");
  EXPECT_EQ(state_of({3, 3, 0, 90000}, FlightStep::kDecode),
            of + "sleeps on request (slow_down of 90.0 s): decision for step 9: decode, 3 tokens, sleep of 90.0 s "
                 "first");
  EXPECT_EQ(state_of({0, 0, kFlightHolds}, FlightStep::kNone),
            of + "holds decode back on request (hold_admission): decision for step 9: nothing to run, decode is held");
}

Log waiting_decode() {
  Log decode(FlightRole::kDecode, 0, 1);
  decode.handover(1, FlightKind::kConnect, {}, 0, 0).handover(1, FlightKind::kConnected, {}, 0, 20);
  decode.handover(1, FlightKind::kSent, FlightMessage::kHello, 0, 20);
  decode.handover(1, FlightKind::kReceived, FlightMessage::kHelloReply, 0, 20);
  decode.handover(14, FlightKind::kSent, FlightMessage::kWant, 77, 20);
  decode.handover(15, FlightKind::kSent, FlightMessage::kWant, 78, 20);
  decode.vote(19.9, 9);
  return decode;
}

TEST(FlightExplain, NamesThePrefillThatAHandoverWaitsFor) {
  Log prefill(FlightRole::kPrefill, 0, 1);
  prefill.handover(14, FlightKind::kReceived, FlightMessage::kWant, 77, 30, "peer 1").vote(14.5, 30);
  prefill.process(FlightProcess::kStopped);
  const std::vector<std::string> sentences = stuck({waiting_decode(), prefill});
  ASSERT_EQ(sentences.size(), 2u);
  EXPECT_EQ(sentences[0],
            "the process of rank 0 (prefill, pid 4711, stopped) stands still: its last entry, 5.5 s old, is 'vote for "
            "step 30: decode, 3 tokens'");
  EXPECT_EQ(sentences[1],
            "rank 0 (decode, pid 4711) has waited for 'source' of room 77 (and of 1 more rooms) for 6.0 s, from "
            "127.0.0.1:8998, rank 0 (prefill, pid 4711, stopped): its last entry, 5.5 s old, is 'vote for step 30: "
            "decode, 3 tokens'");
}

TEST(FlightExplain, AHandoverFromAPrefillThatWorksIsNotStuck) {
  Log prefill(FlightRole::kPrefill, 0, 1);
  prefill.handover(14, FlightKind::kReceived, FlightMessage::kWant, 77, 30, "peer 1").vote(19.9, 30);
  EXPECT_TRUE(stuck({waiting_decode(), prefill}).empty());
}

TEST(FlightExplain, WithoutThePrefillsRecordingItsSilenceIsWhatCounts) {
  EXPECT_EQ(stuck({waiting_decode()}),
            Sentences({"rank 0 (decode, pid 4711) has waited for 'source' of room 77 (and of 1 more rooms) for 6.0 s, "
                       "from 127.0.0.1:8998, of which nothing was heard for 19.0 s"}));
  Log heard = waiting_decode();
  heard.handover(19, FlightKind::kReceived, FlightMessage::kConfirmed, 5, 20);
  EXPECT_TRUE(stuck({heard}).empty()) << "it answers others";
}

Log awake(Log log) { return log.vote(19.95, 10); }

TEST(FlightExplain, RoomsThatEndedWaitForNothing) {
  Log decode = waiting_decode();
  decode.handover(16, FlightKind::kSent, FlightMessage::kAbort, 78, 20);
  decode.handover(16, FlightKind::kReceived, FlightMessage::kSource, 77, 20);
  decode.handover(16, FlightKind::kReceived, FlightMessage::kAnnounce, 77, 20);
  decode.handover(16, FlightKind::kSent, FlightMessage::kConfirm, 77, 20);
  EXPECT_EQ(stuck({awake(decode)}).size(), 1u);
  EXPECT_NE(stuck({awake(decode)})[0].find("'confirmed' of room 77 for 4.0 s"), std::string::npos);
  decode.handover(17, FlightKind::kReceived, FlightMessage::kConfirmed, 77, 20);
  decode.handover(17, FlightKind::kSent, FlightMessage::kAck, 77, 20);
  EXPECT_TRUE(stuck({awake(decode)}).empty());
  Log lost = waiting_decode();
  lost.handover(17, FlightKind::kPeerLost, {}, 0, 20);
  EXPECT_TRUE(stuck({awake(lost)}).empty());
}

TEST(FlightExplain, TheJsonSaysWhatTheSentencesSay) {
  Log quick(FlightRole::kDecode, 0, 2), slow(FlightRole::kDecode, 1, 2);
  step(quick, 5, 4).vote(5, 5);
  step(slow, 5, 4);
  const auto document = json::Document::parse(explanation_json(explain({quick, slow})), "explanation");
  ASSERT_TRUE(document.has_value());
  EXPECT_TRUE(bool(document->root()["stuck"]));
  const auto finding = document->root()["findings"].at(0);
  EXPECT_EQ(std::string_view(finding["kind"]), "rank_missing");
  EXPECT_EQ(int64_t(finding["ranks"].at(0)), 1);
  EXPECT_EQ(int64_t(finding["waiting"].at(0)), 0);
  EXPECT_EQ(int64_t(finding["step"]), 5);
  EXPECT_EQ(std::string_view(finding["operation"]), "vote");
  EXPECT_EQ(document->root()["ranks"].get_array().size(), 2u);
}

TEST(FlightExplain, TheTableHasARowPerRank) {
  Log quick(FlightRole::kDecode, 0, 2), slow(FlightRole::kDecode, 1, 2);
  step(quick, 5, 4).vote(5, 5);
  step(slow, 5, 4);
  const std::string text = explanation_text(explain({slow, quick}));
  EXPECT_EQ(text,
            "server    rank node host                  pid process      step     age s  last entry\n"
            "decode       0    0 host                 4711 running         5      15.0  vote for step 5: decode, 3 "
            "tokens\n"
            "decode       1    0 host                 4711 running         4      15.0  forward of step 4 done\n"
            "\n"
            "stuck: rank 1 (decode, pid 4711) has not voted for step 5 for 15.0 s: its last entry, 15.0 s old, is "
            "'forward of step 4 done'; rank 0 waits for it\n");
}

}  // namespace
}  // namespace tandem::profile
