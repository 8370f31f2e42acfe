// What --slurm makes of a step's environment.
#include "app/slurm.h"

#include <gtest/gtest.h>

#include <set>
#include <sstream>

#include "app/resolve.h"
#include "app/server_flags.h"

namespace tandem::app {
namespace {

using Names = std::vector<std::string>;

Names names(std::string_view list) {
  auto expanded = expand_node_list(list);
  EXPECT_TRUE(expanded) << (expanded ? "" : expanded.error().message);
  return expanded ? *expanded : Names{};
}

TEST(ExpandNodeList, ReadsNamesRangesAndSeveralBrackets) {
  EXPECT_EQ(names("login"), (Names{"login"}));
  EXPECT_EQ(names("a,b-1,c"), (Names{"a", "b-1", "c"}));
  EXPECT_EQ(names("gpu[001-003,7]"), (Names{"gpu001", "gpu002", "gpu003", "gpu7"}));
  EXPECT_EQ(names("gpu[9-11]"), (Names{"gpu9", "gpu10", "gpu11"}));
  EXPECT_EQ(names("gpu[098-101].site,x"), (Names{"gpu098.site", "gpu099.site", "gpu100.site", "gpu101.site", "x"}));
  EXPECT_EQ(names("r[1-2]n[01,03]"), (Names{"r1n01", "r1n03", "r2n01", "r2n03"}));
}

TEST(ExpandNodeList, SaysWhereItIsWrong) {
  EXPECT_EQ(expand_node_list("gpu[3-1]").error().message,
            "node list 'gpu[3-1]': the range before runs backwards at character 8");
  for (const char* wrong : {"", ",", "a,", ",a", "a,,b", "a[", "a[]", "a[1", "a[1-]", "a[-2]", "a[1,]", "a[x]", "a]",
                            "[1-2]]", "a[1-2", "a[0-99999999]", "a[0-999]b[0-999]", "a[99999999999999999999]"}) {
    EXPECT_FALSE(expand_node_list(wrong)) << wrong;
  }
}

TEST(SlurmMeetingPort, DiffersBetweenTheStepsOfAJobAndTheNextJobs) {
  std::set<uint16_t> ports;
  for (int64_t job = 1000; job < 1500; ++job) {
    for (int64_t step = 0; step < 16; ++step) ports.insert(slurm_meeting_port(job, step));
  }
  EXPECT_EQ(ports.size(), 500u * 16);
  EXPECT_GE(*ports.begin(), 20000);
  EXPECT_LT(*ports.rbegin(), 28192);
  EXPECT_LT(slurm_meeting_port(INT64_MAX, INT64_MAX), 28192);
}

SlurmVariables second_of_three() {
  SlurmVariables slurm;
  slurm.node_id = "1";
  slurm.num_nodes = slurm.num_tasks = "3";
  slurm.node_list = "gpu[007-009]";
  slurm.job_id = "42";
  slurm.step_id = "2";
  return slurm;
}

ResolveOutcome resolve_line(const std::string& line, SlurmVariables slurm) {
  Names args;
  std::istringstream words("--slurm --model-path " TANDEM_SOURCE_DIR "/models/tiny " + line);
  for (std::string word; words >> word;) args.push_back(word);
  auto parsed = parse_flags("launch_server", "", server_flags(), args);
  EXPECT_TRUE(parsed) << parsed.error().message;
  Environment environment;
  environment.slurm = std::move(slurm);
  return resolve(std::move(parsed)->values, std::move(environment));
}

constexpr const char* kSixRanks = "--tp-size 6 --dp-size 6 --enable-dp-attention --ep-num-redundant-experts 4 ";

TEST(ApplySlurm, GivesNodesRankAddressAndHost) {
  const ResolveOutcome outcome = resolve_line(kSixRanks, second_of_three());
  EXPECT_TRUE(outcome.faults.empty()) << outcome.faults[0];
  EXPECT_EQ(outcome.config.num_nodes, 3);
  EXPECT_EQ(outcome.config.node_rank, 1);
  EXPECT_EQ(outcome.config.num_ranks, 2);
  EXPECT_EQ(outcome.config.flags.text("dist_init_addr"), "gpu007:" + std::to_string(slurm_meeting_port(42, 2)));
  EXPECT_EQ(outcome.config.flags.text("host"), "0.0.0.0");
}

TEST(ApplySlurm, WhatTheCommandLineSaysWins) {
  const ResolveOutcome outcome =
      resolve_line(std::string(kSixRanks) + "--nnodes 2 --node-rank 0 --dist-init-addr 10.0.0.1:5757 --host 10.0.0.1",
                   SlurmVariables());
  EXPECT_TRUE(outcome.faults.empty()) << outcome.faults[0];
  EXPECT_EQ(outcome.config.num_nodes, 2);
  EXPECT_EQ(outcome.config.node_rank, 0);
  EXPECT_EQ(outcome.config.flags.text("dist_init_addr"), "10.0.0.1:5757");
  EXPECT_EQ(outcome.config.flags.text("host"), "10.0.0.1");
}

TEST(ApplySlurm, APortAloneIsJoinedToTheFirstNode) {
  const ResolveOutcome outcome = resolve_line(std::string(kSixRanks) + "--dist-init-addr :5757", second_of_three());
  EXPECT_TRUE(outcome.faults.empty()) << outcome.faults[0];
  EXPECT_EQ(outcome.config.flags.text("dist_init_addr"), "gpu007:5757");
}

TEST(ApplySlurm, OneNodeNeedsNoMeeting) {
  SlurmVariables slurm;
  slurm.node_id = "0";
  slurm.num_nodes = slurm.num_tasks = "1";
  const ResolveOutcome outcome = resolve_line("", slurm);
  EXPECT_TRUE(outcome.faults.empty()) << outcome.faults[0];
  EXPECT_FALSE(outcome.config.flags.has("dist_init_addr"));
}

void expect_fault(const SlurmVariables& slurm, const std::string& part) {
  const ResolveOutcome outcome = resolve_line(kSixRanks, slurm);
  ASSERT_FALSE(outcome.faults.empty());
  EXPECT_NE(outcome.faults[0].find(part), std::string::npos) << outcome.faults[0];
}

TEST(ApplySlurm, NamesTheVariableThatIsMissingOrMakesNoSense) {
  expect_fault({}, "SLURM_NNODES is not set: start it with srun");
  SlurmVariables slurm = second_of_three();
  slurm.node_id = "one";
  expect_fault(slurm, "SLURM_NODEID: wanted a number, got 'one'");
  slurm = second_of_three();
  slurm.num_tasks = "12";
  expect_fault(slurm, "Slurm started 12 on 3 nodes");
  slurm = second_of_three();
  slurm.node_list = "gpu[7-8]";
  expect_fault(slurm, "the node list 'gpu[7-8]' names 2");
  slurm.node_list = "gpu[7-";
  expect_fault(slurm, "a number was wanted");
  slurm.node_list.reset();
  expect_fault(slurm, "SLURM_STEP_NODELIST is not set");
}

}  // namespace
}  // namespace tandem::app
