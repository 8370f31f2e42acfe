// /start_profile and /stop_profile before a fake engine.
#include "tests/server/support.h"

namespace tandem::server::testing {
namespace {

TEST(ProfileEndpoints, AnOrderGoesToTheEngineAndIsAnsweredAsSglangAnswers) {
  ServerConfig config = tiny_config();
  config.profile_directory = "/var/tmp/traces";
  config.home_directory = "/houses/mine";
  Fixture fixture(config);
  const auto started = fixture.post("/start_profile", R"({"output_dir":"~/x","num_steps":"5"})");
  EXPECT_EQ(started.status, 200);
  EXPECT_EQ(started.body, "Start profiling.\n");
  const auto stopped = fixture.get("/stop_profile");
  EXPECT_EQ(stopped.status, 200);
  EXPECT_EQ(stopped.body, "Stop profiling. This will take some time.\n");
  EXPECT_EQ(fixture.get("/start_profile").status, 200);
  const auto orders = fixture.engine().profiles();
  ASSERT_EQ(orders.size(), 3u);
  EXPECT_EQ(orders[0].kind, engine::ProfileCommand::Kind::kStart);
  EXPECT_EQ(orders[0].call.output_dir, "/houses/mine/x");
  EXPECT_EQ(orders[0].call.num_steps, 5);
  EXPECT_EQ(orders[0].call.profile_id, "3600");  // the clock's
  EXPECT_EQ(orders[1].kind, engine::ProfileCommand::Kind::kStop);
  EXPECT_EQ(orders[2].call.output_dir, "/var/tmp/traces");
}

TEST(ProfileEndpoints, WhatTheBodyOrTheEngineRefusesIsA400WithTheReason) {
  Fixture fixture;
  const auto broken = fixture.post("/start_profile", R"({"num_steps":"x"})");
  EXPECT_EQ(broken.status, 400);
  EXPECT_NE(at(broken.body, "/message").find("num_steps"), std::string::npos) << broken.body;
  EXPECT_TRUE(fixture.engine().profiles().empty());
  fixture.engine().set_profile_answer(invalid_input("Profiling is already in progress. Call /stop_profile first."));
  const auto twice = fixture.post("/start_profile", "{}");
  EXPECT_EQ(twice.status, 400);
  EXPECT_EQ(at(twice.body, "/message"), "Profiling is already in progress. Call /stop_profile first.");
  fixture.engine().set_profile_answer(exhausted("x: cannot write: No space left on device"));
  EXPECT_EQ(fixture.post("/stop_profile", "").status, 503);
  EXPECT_EQ(fixture.call("PUT", "/start_profile", "{}", {}).status, 405);
}

TEST(ProfileEndpoints, AFullQueueAndAServerThatStartsAre503) {
  Fixture fixture(tiny_config(), false);
  EXPECT_EQ(fixture.post("/start_profile", "{}").status, 503);
  Fixture full;
  full.engine().set_room(0);
  EXPECT_EQ(full.post("/start_profile", "{}").status, 503);
}

}  // namespace
}  // namespace tandem::server::testing
