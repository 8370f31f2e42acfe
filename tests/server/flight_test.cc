// /flight_recorder: what it answers from the rings of two ranks, how large that can get, and who may ask.
#include <stdlib.h>

#include <filesystem>

#include "profile/flight_reader.h"
#include "profile/flight_recorder.h"
#include "tests/server/support.h"

namespace tandem::server::testing {
namespace {

class FlightEndpoint : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = std::filesystem::temp_directory_path() / "tandem-flight-endpoint-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
    for (int32_t rank = 0; rank < 2; ++rank) {
      profile::FlightIdentity identity;
      identity.rank = rank;
      identity.num_ranks = 2;
      auto made = profile::FlightRecorder::create(directory_ + "/rank-" + std::to_string(rank), identity, clock_);
      ASSERT_TRUE(made.has_value()) << made.error().message;
      recorders_.push_back(std::move(*made));
    }
  }
  void TearDown() override {
    recorders_.clear();
    std::filesystem::remove_all(directory_);
  }

  std::unique_ptr<Fixture> serve(ServerConfig config = tiny_config()) const {
    std::vector<const profile::FlightRecorder*> flight;
    for (const auto& recorder : recorders_) flight.push_back(recorder.get());
    return std::make_unique<Fixture>(std::move(config), true, net::HttpServerOptions{}, std::move(flight));
  }
  void vote(int32_t rank, uint64_t step) {
    profile::FlightEntry entry;
    entry.kind = profile::FlightKind::kVote;
    entry.step = step;
    recorders_[size_t(rank)]->add(entry);
  }

  std::string directory_;
  SystemClock clock_;
  std::vector<std::unique_ptr<profile::FlightRecorder>> recorders_;
};

TEST_F(FlightEndpoint, SaysWhoWaitsForWhomAsJson) {
  vote(0, 7);
  vote(1, 6);
  const auto fixture = serve();
  const auto answer = fixture->get("/flight_recorder");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.content_type, "application/json");
  EXPECT_EQ(at(answer.body, "/stuck"), "false") << "the wait is young";
  EXPECT_EQ(at(answer.body, "/findings/0/kind"), "state");
  EXPECT_EQ(at(answer.body, "/ranks/0/step"), "7");
  EXPECT_EQ(at(answer.body, "/ranks/1/step"), "6");
  EXPECT_EQ(at(answer.body, "/ranks/1/rank"), "1");
  EXPECT_EQ(at(answer.body, "/ranks/1/process"), "running");
  EXPECT_EQ(at(answer.body, "/ranks/1/pid"), std::to_string(getpid()));
  EXPECT_EQ(at(answer.body, "/ranks/1/last_entry"), "vote for step 6: nothing to run");
  EXPECT_EQ(at(answer.body, "/ranks/2"), "(none)");
  EXPECT_EQ(fixture->call("POST", "/flight_recorder", "", {}).status, 405);
}

TEST_F(FlightEndpoint, RawGivesTheRingsAsTheyAreReadFromFiles) {
  vote(0, 7);
  vote(1, 6);
  const auto fixture = serve();
  const auto answer = fixture->get("/flight_recorder?raw=1");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.content_type, "application/octet-stream");
  const auto logs = profile::parse_flight_logs(answer.body, "answer");
  ASSERT_TRUE(logs.has_value()) << logs.error().message;
  ASSERT_EQ(logs->size(), 2u);
  EXPECT_EQ((*logs)[1].header.rank, 1);
  EXPECT_EQ((*logs)[1].process, profile::FlightProcess::kRunning);
  ASSERT_EQ((*logs)[1].entries.size(), 1u);
  EXPECT_EQ((*logs)[1].entries[0].step, 6u);
}

TEST_F(FlightEndpoint, ItsSizeDoesNotGrowWithWhatWasRecorded) {
  const auto fixture = serve();
  const size_t few = fixture->get("/flight_recorder?raw=1").body.size();
  EXPECT_EQ(few, 2 * profile::kFlightFileBytes);
  profile::FlightEntry entry;
  for (uint64_t step = 1; step <= 20'000; ++step) {
    entry.step = step;
    for (int kind = 1; kind < int(profile::FlightKind::kCount); ++kind) {
      entry.kind = profile::FlightKind(kind);
      recorders_[0]->add(entry);
    }
  }
  EXPECT_EQ(fixture->get("/flight_recorder?raw=1").body.size(), few);
  EXPECT_LT(fixture->get("/flight_recorder").body.size(), size_t(64) << 10);
}

TEST_F(FlightEndpoint, WhereNothingIsRecordedThereIsNothing) {
  Fixture fixture;
  const auto answer = fixture.get("/flight_recorder");
  EXPECT_EQ(answer.status, 404);
  EXPECT_EQ(at(answer.body, "/detail"), "Not Found: nothing is recorded");
}

TEST_F(FlightEndpoint, TheAdminKeyIsWantedWhereThereIsOneElseTheApiKey) {
  const net::Headers none, client{{"Authorization", "Bearer client"}}, admin{{"Authorization", "Bearer admin"}};
  ServerConfig config = tiny_config();
  config.api_key = "client";
  const auto fixture = serve(config);
  config.admin_api_key = "admin";
  const auto guarded = serve(config);
  for (const char* path : {"/flight_recorder", "/flight_recorder?raw=1"}) {
    EXPECT_EQ(fixture->get(path, none).status, 401) << path;
    EXPECT_EQ(fixture->get(path, client).status, 200) << path;
    EXPECT_EQ(guarded->get(path, none).status, 401) << path;
    EXPECT_EQ(guarded->get(path, client).status, 401) << path;
    EXPECT_EQ(guarded->get(path, admin).status, 200) << path;
  }
}

}  // namespace
}  // namespace tandem::server::testing
