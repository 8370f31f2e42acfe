// Ranks of one process whose recorders say who is missing: one rank is frozen (it makes no calls) at the vote, in a
// dispatch, in a combine and in a round of its attention group, and the explanation names it, step and operation.
#include "parallel/flight.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "profile/flight_explain.h"

namespace tandem::parallel {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class FrozenRank : public ::testing::Test {
 protected:
  static constexpr int32_t kRanks = 3, kFrozen = 1;

  void SetUp() override {
    std::string name = std::filesystem::temp_directory_path() / "tandem-flight-test-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
    clock_.advance(seconds(1000));
    auto communicators = make_local_communicators(kRanks, seconds(60));
    ExchangeShape shape;
    shape.num_ranks = kRanks;
    shape.slots_per_rank = 2;
    shape.top_k = 1;
    shape.hidden = 4;
    shape.dtype = device::DType::kF32;
    shape.max_tokens = 4;
    auto exchanges = make_local_exchanges(shape, seconds(60), 0);
    auto seats = make_attention_groups(Rank{0}, kRanks, kRanks, seconds(60), 0);
    for (int32_t i = 0; i < kRanks; ++i) {
      profile::FlightIdentity identity;
      identity.role = profile::FlightRole::kDecode;
      identity.rank = i;
      identity.num_ranks = identity.attention_size = kRanks;
      recorders_.push_back(std::move(
          *profile::FlightRecorder::create(directory_ + "/" + std::to_string(i) + ".flight", identity, clock_)));
      communicators_.push_back(note_flight(std::move(communicators[size_t(i)]), *recorders_.back()));
      exchanges_.push_back(note_flight(std::move(exchanges[size_t(i)]), *recorders_.back()));
      seats_.push_back(note_flight(std::move(seats[size_t(i)]), *recorders_.back()));
    }
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  static bool moves(int32_t rank, bool with_frozen) { return with_frozen || rank != kFrozen; }
  void vote(uint64_t step, StepKind kind, bool with_frozen) {
    for (int32_t i = 0; i < kRanks; ++i) {
      if (!moves(i, with_frozen)) continue;
      StepVote vote;
      vote.step = step;
      vote.kind = kind;
      vote.num_tokens = 2;
      communicators_[size_t(i)]->post_vote(vote, clock_.now());
    }
    for (int32_t i = 0; i < kRanks; ++i) {
      if (!moves(i, with_frozen)) continue;
      const auto polled = communicators_[size_t(i)]->poll_decision(clock_.now());
      ASSERT_TRUE(polled.has_value());
      EXPECT_EQ(polled->has_value(), with_frozen);
    }
  }
  // Each rank sends two tokens to the first slot of the next.
  void dispatch(ExchangeTag tag, bool with_frozen) {
    for (int32_t i = 0; i < kRanks; ++i) {
      if (!moves(i, with_frozen)) continue;
      slots_[size_t(i)].fill((i + 1) % kRanks * 2);
      exchanges_[size_t(i)]->post_dispatch(0, tag, ExchangeMode::kNormal, {x_.data(), device::DType::kF32, {2, 4}},
                                           device::TensorView(slots_[size_t(i)].data(), device::DType::kI32, {2, 1}));
    }
    for (int32_t i = 0; i < kRanks; ++i) {
      if (!moves(i, with_frozen)) continue;
      const auto polled = exchanges_[size_t(i)]->poll_received(0, clock_.now());
      ASSERT_TRUE(polled.has_value());
      EXPECT_EQ(polled->has_value(), with_frozen);
    }
  }
  void answer(bool with_frozen) {
    for (int32_t i = 0; i < kRanks; ++i) {
      if (moves(i, with_frozen)) exchanges_[size_t(i)]->post_results(0);
    }
    for (int32_t i = 0; i < kRanks; ++i) {
      if (!moves(i, with_frozen)) continue;
      std::array<const float*, 2> rows;
      const auto polled = exchanges_[size_t(i)]->poll_results(0, clock_.now(), rows);
      ASSERT_TRUE(polled.has_value());
      EXPECT_EQ(*polled, with_frozen);
    }
  }

  profile::Explanation explain() const {
    std::vector<const profile::FlightRecorder*> all;
    for (const auto& recorder : recorders_) all.push_back(recorder.get());
    return profile::explain(profile::read_flights(all));
  }
  // The one thing that is stuck, without the process in brackets.
  std::string sentence() const {
    const profile::Explanation explanation = explain();
    EXPECT_TRUE(explanation.is_stuck);
    if (explanation.findings.size() != 1) {
      ADD_FAILURE() << profile::explanation_text(explanation);
      return "";
    }
    std::string text = explanation.findings[0].sentence;
    for (size_t at; (at = text.find(" (decode")) != std::string::npos;) text.erase(at, text.find(')', at) + 1 - at);
    return text;
  }

  std::string directory_;
  ManualClock clock_;
  std::vector<std::unique_ptr<profile::FlightRecorder>> recorders_;
  std::vector<std::unique_ptr<Communicator>> communicators_;
  std::vector<std::unique_ptr<ExpertExchange>> exchanges_;
  std::vector<std::unique_ptr<AttentionGroup>> seats_;
  std::array<float, 8> x_{};
  std::array<std::array<int32_t, 2>, kRanks> slots_{};
};

TEST_F(FrozenRank, AtTheVote) {
  vote(7, StepKind::kDecode, true);
  clock_.advance(seconds(1));
  vote(8, StepKind::kDecode, false);
  EXPECT_FALSE(explain().is_stuck);
  clock_.advance(seconds(5));
  EXPECT_EQ(sentence(),
            "rank 1 has not voted for step 8 for 5.0 s: its last entry, 6.0 s old, is 'decision for step 7: decode, 6 "
            "tokens'; ranks 0 and 2 wait for it");
}

TEST_F(FrozenRank, InADispatch) {
  vote(7, StepKind::kDecode, true);
  dispatch({7, 4}, true);
  answer(true);
  dispatch({7, 5}, false);
  clock_.advance(seconds(5));
  EXPECT_EQ(sentence(),
            "rank 1 has not dispatched layer 5 of step 7 for 5.0 s: its last entry, 5.0 s old, is 'results of layer 4 "
            "in step 7'; ranks 0 and 2 wait for it");
}

TEST_F(FrozenRank, InACombine) {
  vote(7, StepKind::kDecode, true);
  dispatch({7, 4}, true);
  answer(false);
  clock_.advance(seconds(5));
  EXPECT_EQ(sentence(),
            "rank 1 has not given results for layer 4 of step 7 for 5.0 s: its last entry, 5.0 s old, is 'dispatch of "
            "layer 4 in step 7'; ranks 0 and 2 wait for it");
}

TEST_F(FrozenRank, InItsAttentionGroup) {
  vote(7, StepKind::kDecode, true);
  const int value = 0;
  for (const auto& seat : seats_) seat->post({7, 2}, &value);
  for (const auto& seat : seats_) ASSERT_TRUE(*seat->poll(clock_.now()));
  for (int32_t i = 0; i < kRanks; ++i) {
    if (i != kFrozen) seats_[size_t(i)]->post({7, 3}, &value);
  }
  clock_.advance(seconds(5));
  EXPECT_EQ(sentence(),
            "rank 1 has not come to the attention of layer 3 of step 7 for 5.0 s: its last entry, 5.0 s old, is "
            "'attention of layer 2 in step 7'; ranks 0 and 2 wait for it");
}

TEST_F(FrozenRank, IsNamedByTheOthersWhereItsOwnRecordingIsMissing) {
  vote(7, StepKind::kDecode, true);
  vote(8, StepKind::kDecode, false);
  for (const int32_t i : {0, 2}) {
    communicators_[size_t(i)]->wait(milliseconds(1));  // too young to be noted
    clock_.advance(milliseconds(60));
    communicators_[size_t(i)]->wait(milliseconds(1));
    communicators_[size_t(i)]->wait(milliseconds(1));  // noted once
  }
  clock_.advance(seconds(5));
  const profile::FlightRecorder* others[] = {recorders_[0].get(), recorders_[2].get()};
  const std::vector<profile::FlightLog> logs = profile::read_flights(others);
  EXPECT_EQ(std::ranges::count(logs[0].entries, profile::FlightKind::kWait, &profile::FlightEntry::kind), 1);
  const profile::Explanation explanation = profile::explain(logs);
  ASSERT_EQ(explanation.findings.size(), 1u);
  EXPECT_EQ(explanation.findings[0].sentence,
            "rank 1 (decode, no recording of it here) has not voted for step 8 for 5.1 s; ranks 0 and 2 wait for it");
}

TEST_F(FrozenRank, IdleRoundsDoNotWashOutWhatWasBefore) {
  vote(1, StepKind::kDecode, true);
  dispatch({1, 4}, true);
  answer(true);
  for (uint64_t step = 2; step < 3000; ++step) {
    vote(step, StepKind::kNone, true);
    clock_.advance(milliseconds(20));
  }
  vote(3000, StepKind::kNone, false);
  const profile::FlightRecorder* one[] = {recorders_[0].get()};
  const std::vector<profile::FlightLog> logs = profile::read_flights(one);
  EXPECT_EQ(logs[0].entries.front().step, 1u);
  EXPECT_LT(logs[0].entries.size(), 12u);
  clock_.advance(seconds(5));
  EXPECT_EQ(sentence(),
            "rank 1 has not voted for step 3000 for 5.0 s: its last entry, 5.0 s old, is 'decision for step 2999: "
            "nothing to run'; ranks 0 and 2 wait for it");
}

TEST_F(FrozenRank, NobodyIsNamedWhileTheGroupSleepsOnRequest) {
  for (uint64_t step = 1; step < 400; ++step) {
    for (const auto& communicator : communicators_) {
      StepVote vote;
      vote.step = step;
      vote.kind = StepKind::kDecode;
      vote.sleep_ms = 90000;
      communicator->post_vote(vote, clock_.now());
    }
    for (const auto& communicator : communicators_)
      ASSERT_TRUE((*communicator->poll_decision(clock_.now())).has_value());
    clock_.advance(milliseconds(20));
  }
  const profile::Explanation explanation = explain();
  EXPECT_FALSE(explanation.is_stuck);
  EXPECT_NE(explanation.findings[0].sentence.find("sleeps on request (slow_down of 90.0 s)"), std::string::npos);
}

}  // namespace
}  // namespace tandem::parallel
