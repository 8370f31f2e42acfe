// Bodies of /start_profile.
#include "api/profile.h"

#include <gtest/gtest.h>

namespace tandem::api {
namespace {

std::string fault_of(const std::string& body) {
  const auto call = parse_start_profile(body);
  return call ? "" : call.error().message;
}

TEST(StartProfile, NothingAsksForTheDefaults) {
  for (const char* body : {"", "{}", R"({"num_steps":null,"output_dir":null,"unknown":[1]})"}) {
    const auto call = parse_start_profile(body);
    ASSERT_TRUE(call.has_value()) << body;
    EXPECT_EQ(*call, ProfileCall{});
  }
}

TEST(StartProfile, EveryFieldIsReadAsLenientlyAsSglangDoes) {
  const auto call = parse_start_profile(
      R"({"output_dir":"/tmp/x","num_steps":"5","start_step":"15","activities":["CPU","GPU"],"with_stack":false,
          "record_shapes":"false","profile_by_stage":1,"merge_profiles":"true","profile_prefix":"bs-8",
          "profile_stages":["decode"]})");
  ASSERT_TRUE(call.has_value()) << call.error().message;
  ProfileCall wanted;
  wanted.output_dir = "/tmp/x";
  wanted.num_steps = 5;
  wanted.start_step = 15;
  wanted.record_shapes = false;
  wanted.by_stage = true;
  wanted.wants_extend = false;
  wanted.merge = true;
  wanted.prefix = "bs-8";
  EXPECT_EQ(*call, wanted);
}

TEST(StartProfile, WithoutTheCpuThereAreNoOperators) {
  EXPECT_FALSE(parse_start_profile(R"({"activities":["GPU"]})")->operators);
}

TEST(StartProfile, WhatCannotBeIsRefusedByName) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"num_steps":0})", "num_steps"},
      {R"({"num_steps":"five"})", "num_steps"},
      {R"({"num_steps":[5]})", "num_steps"},
      {R"({"num_steps":1e300})", "num_steps"},
      {R"({"start_step":-1})", "start_step"},
      {R"({"activities":["MEM"]})", "activities: 'MEM' is not offered"},
      {R"({"activities":[]})", "activities: is empty"},
      {R"({"profile_stages":["idle"]})", "profile_stages"},
      {R"({"profile_prefix":"../x"})", "profile_prefix: has a '/'"},
      {R"({"output_dir":5})", "output_dir"},
      {R"({"output_dir":"a\u0000b"})", "output_dir: has a zero byte"},
      {R"({"with_stack":"perhaps"})", "with_stack"},
      {R"({"profile_by_stage":true})", "profile_by_stage: needs num_steps"},
      {"[]", "object"},
      {"{", ""},
  };
  for (const auto& [body, wanted] : cases) {
    const std::string fault = fault_of(body);
    EXPECT_FALSE(fault.empty()) << body;
    EXPECT_NE(fault.find(wanted), std::string::npos) << body << ": " << fault;
  }
}

}  // namespace
}  // namespace tandem::api
