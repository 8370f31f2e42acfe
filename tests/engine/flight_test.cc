// What engines record of themselves: prefill and decode of which one side is frozen at any moment of a handover, and a
// rank whose group is lost.
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "profile/flight_explain.h"
#include "tests/engine/pair_rig.h"

namespace tandem::testing {
namespace {

using std::chrono::seconds;

class EngineFlight : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = std::filesystem::temp_directory_path() / "tandem-flight-test-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::unique_ptr<profile::FlightRecorder> record(profile::FlightIdentity identity, const Clock& clock) {
    identity.group = identity.epoch;
    identity.num_layers = Rig::kLayers;
    const std::string path = directory_ + "/" + std::to_string(++num_files_) + ".flight";
    auto made = profile::FlightRecorder::create(path, identity, clock);
    EXPECT_TRUE(made.has_value());
    return std::move(*made);
  }
  static profile::Explanation explain(std::initializer_list<const profile::FlightRecorder*> recorders) {
    return profile::explain(profile::read_flights(std::span(recorders.begin(), recorders.size())));
  }

  std::string directory_;
  int num_files_ = 0;
};

// A pair with recorders that has served one request and has got another.
class RecordedPair {
 public:
  explicit RecordedPair(
      const std::function<std::unique_ptr<profile::FlightRecorder>(profile::FlightIdentity, const Clock&)>& record) {
    PairOptions options;
    profile::FlightIdentity identity;
    identity.role = profile::FlightRole::kPrefill;
    identity.epoch = options.prefill.epoch + 100;  // as Pair starts it
    prefill_flight = record(identity, clock_);
    identity.role = profile::FlightRole::kDecode;
    identity.epoch = 108;
    decode_flight = record(identity, clock_);
    options.prefill_flight = prefill_flight.get();
    options.decode_flight = decode_flight.get();
    pair.emplace(options);
    pair->submit(greedy_request(1, prompt_of(1, 40), 4), 501);
    run_until_idle();
    pair->submit(greedy_request(2, prompt_of(2, 40), 4), 502);
  }
  void turn() {
    pair->turn();
    follow();
  }
  void run_until_idle() {
    pair->run_until_idle();
    follow();
  }
  // The frozen side's transfer thread still runs.
  void freeze(Instance& frozen, Instance& other) {
    for (int i = 0; i < 50; ++i) {
      frozen.hand->pump(pair->clock.now());
      other.turn();
    }
    pair->clock.advance(std::chrono::seconds(4));
    follow();
    for (int i = 0; i < 3; ++i) other.turn();
  }

  std::unique_ptr<profile::FlightRecorder> prefill_flight, decode_flight;
  std::optional<Pair> pair;

 private:
  // The recorders are there before the pair's clock is.
  void follow() { clock_.advance(pair->clock.now() - clock_.now()); }
  ManualClock clock_;
};

const profile::FlightFinding* handover_of(const profile::Explanation& explanation) {
  for (const profile::FlightFinding& finding : explanation.findings) {
    if (finding.kind == profile::FlightFinding::Kind::kHandover && finding.is_stuck) return &finding;
  }
  return nullptr;
}

TEST_F(EngineFlight, DecodeNamesThePrefillThatStandsStillAtAnyMomentOfAHandover) {
  std::set<std::string> awaited;
  for (int turns = 0; turns < 60; ++turns) {
    RecordedPair of([this](auto identity, const Clock& clock) { return record(identity, clock); });
    for (int i = 0; i < turns; ++i) of.turn();
    of.freeze(*of.pair->prefill, *of.pair->decode);
    if (of.pair->decode->rig.answers[2].finish) break;
    const profile::Explanation explanation = explain({of.decode_flight.get(), of.prefill_flight.get()});
    const profile::FlightFinding* finding = handover_of(explanation);
    if (finding == nullptr) continue;  // decode has all that it needs
    EXPECT_EQ(finding->role, "decode");
    EXPECT_EQ(finding->step, 502u);
    EXPECT_NE(finding->sentence.find("from prefill:9000, rank 0 (prefill, pid "), std::string::npos)
        << finding->sentence;
    awaited.insert(finding->operation);
  }
  EXPECT_TRUE(awaited.contains("'source'"));
  EXPECT_TRUE(awaited.contains("'announce' of the last layer") || awaited.contains("'confirmed'"));
}

TEST_F(EngineFlight, PrefillNamesTheDecodeThatDoesNotAcknowledge) {
  bool seen = false;
  for (int turns = 0; turns < 60 && !seen; ++turns) {
    RecordedPair of([this](auto identity, const Clock& clock) { return record(identity, clock); });
    for (int i = 0; i < turns; ++i) of.turn();
    of.freeze(*of.pair->decode, *of.pair->prefill);
    const profile::Explanation explanation = explain({of.decode_flight.get(), of.prefill_flight.get()});
    const profile::FlightFinding* finding = handover_of(explanation);
    if (finding == nullptr) continue;
    EXPECT_EQ(finding->role, "prefill");
    EXPECT_EQ(finding->operation, "'ack'");
    EXPECT_EQ(finding->step, 502u);
    seen = true;
  }
  EXPECT_TRUE(seen);
}

TEST_F(EngineFlight, NothingIsStuckAfterRequestsWereServed) {
  RecordedPair of([this](auto identity, const Clock& clock) { return record(identity, clock); });
  of.run_until_idle();
  of.turn();
  const profile::Explanation explanation = explain({of.decode_flight.get(), of.prefill_flight.get()});
  EXPECT_FALSE(explanation.is_stuck) << profile::explanation_text(explanation);
}

TEST_F(EngineFlight, AStepIsAVoteADecisionAndAForward) {
  ManualClock clock;
  clock.advance(seconds(1));
  auto flight = record({}, clock);
  Rig rig(small_config(), nullptr, &clock, 1, nullptr, flight.get());
  rig.submit(greedy_request(1, prompt_of(1, 12), 2));
  rig.turn();
  const profile::FlightRecorder* one[] = {flight.get()};
  std::vector<profile::FlightKind> kinds;
  const std::vector<profile::FlightLog> logs = profile::read_flights(one);
  for (const profile::FlightEntry& entry : logs[0].entries) kinds.push_back(entry.kind);
  using enum profile::FlightKind;
  EXPECT_EQ(kinds, std::vector({kVote, kDecision, kForwardBegin, kForwardEnd}));
}

TEST_F(EngineFlight, ARankWhoseGroupIsLostRecordsWhyAndForWhomItWaited) {
  ManualClock clock;
  clock.advance(seconds(1));
  profile::FlightIdentity identity;
  identity.num_ranks = 2;
  auto flight = record(identity, clock);
  auto ranks = parallel::make_local_communicators(2, seconds(10));
  const auto communicator = parallel::note_flight(std::move(ranks[0]), *flight);
  Rig rig(small_config(), nullptr, &clock, 1, communicator.get(), flight.get());
  rig.turn();
  clock.advance(seconds(5));
  communicator->wait(std::chrono::milliseconds(1));
  clock.advance(seconds(6));
  rig.turn();
  ASSERT_TRUE(rig.engine->snapshot().lost);
  const profile::Explanation explanation = explain({flight.get()});
  ASSERT_EQ(explanation.findings.size(), 2u) << profile::explanation_text(explanation);
  EXPECT_EQ(explanation.findings[0].sentence,
            "rank 1 (combined, no recording of it here) has not voted for step 0 for 11.0 s; rank 0 waits for it");
  EXPECT_EQ(explanation.findings[1].kind, profile::FlightFinding::Kind::kGaveUp);
  EXPECT_NE(explanation.findings[1].sentence.find(
                "gave up at step 0: no vote for step 0 from rank(s) 1 of 2 within 10.000 s; asked by rank 0"),
            std::string::npos)
      << explanation.findings[1].sentence;
}

}  // namespace
}  // namespace tandem::testing
