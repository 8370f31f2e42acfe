#include "app/config_file.h"

#include <gtest/gtest.h>

#include <fstream>

#include "app/server_flags.h"

namespace tandem::app {
namespace {

using Words = std::vector<std::string>;

Result<Words> parse(std::string_view text) { return parse_config("f.yaml", text, server_flags()); }

std::string fault(std::string_view text) {
  const Result<Words> parsed = parse(text);
  return parsed ? "no error" : parsed.error().message;
}

TEST(ConfigFile, ScalarsListsAndSwitchesBecomeArguments) {
  const Result<Words> parsed = parse(R"(# a server
---
model-path: /models/r1   # a comment
tp_size: 8
trust-remote-code: true
disable-radix-cache: no
cuda-graph-bs: [1, 2, 4]
schedule-conservativeness: 0.5
json-model-override-args: '{"num_hidden_layers": 20}'
served-model-name: "a \"b\" # c"
random-seed: null
)");
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_EQ(*parsed,
            (Words{"--model-path=/models/r1", "--tp-size=8", "--trust-remote-code", "--cuda-graph-bs", "1", "2", "4",
                   "--schedule-conservativeness=0.5", R"(--json-model-override-args={"num_hidden_layers": 20})",
                   R"(--served-model-name=a "b" # c)"}));
}

TEST(ConfigFile, AListMayStandBelowItsKey) {
  const Result<Words> parsed = parse("cuda-graph-bs:\n  - 1\n\n  # two\n  - 2\nport: 31000\n");
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_EQ(*parsed, (Words{"--cuda-graph-bs", "1", "2", "--port=31000"}));
  EXPECT_EQ(*parse("cuda-graph-bs:\n- 1\r\n- 2\r\n"), (Words{"--cuda-graph-bs", "1", "2"}));
  EXPECT_EQ(*parse("cuda-graph-bs:\nport: 1\n"), Words{"--port=1"}) << "nothing is as if it were not there";
}

TEST(ConfigFile, AnythingElseIsRefusedWithItsLine) {
  EXPECT_EQ(fault("a: 1\n"), "f.yaml:1: unknown flag 'a'");
  EXPECT_EQ(fault("\nport: 1\nport: 2\n"), "f.yaml:3: 'port' is given twice");
  EXPECT_EQ(fault("port 1\n"), "f.yaml:1: wanted 'flag: value'");
  EXPECT_EQ(fault("  port: 1\n"), "f.yaml:1: an indented line belongs to nothing");
  EXPECT_EQ(fault("port:\n  inner: 1\n"), "f.yaml:2: an indented line belongs to nothing");
  EXPECT_EQ(fault("port: a: b\n"), "f.yaml:1: nested mappings are not understood");
  EXPECT_EQ(fault("trust-remote-code: maybe\n"), "f.yaml:1: trust-remote-code wants true or false, got 'maybe'");
  EXPECT_EQ(fault("port: true\n"), "f.yaml:1: port wants a value, got a boolean");
  EXPECT_EQ(fault("port: [1]\n"), "f.yaml:1: port takes no list");
  EXPECT_EQ(fault("config: other.yaml\n"), "f.yaml:1: 'config' belongs on the command line");
  EXPECT_EQ(fault("host: 'open\n"), "f.yaml:1: a quoted text does not end on its line");
  EXPECT_EQ(fault("host: \"a\\qb\"\n"), R"(f.yaml:1: only \" \\ \/ \n and \t are understood in double quotes)");
  EXPECT_EQ(fault("host: \"a\" b\n"), "f.yaml:1: something follows the value");
  for (const char* text : {"json-model-override-args: {a: 1}", "host: &x y", "host: *x", "host: |", "host: >-"}) {
    EXPECT_NE(fault(text).find("must be quoted"), std::string::npos) << text;
  }
  for (const char* text : {"cuda-graph-bs: [1, 2", "cuda-graph-bs: [1,,2]", "cuda-graph-bs: [[1]]",
                           "cuda-graph-bs: [1] 2", "cuda-graph-bs:\n  - \n"}) {
    EXPECT_NE(fault(text), "no error") << text;
  }
}

TEST(ConfigFile, TheCommandLineWins) {
  const std::string path = ::testing::TempDir() + "/tandem_config_test.yaml";
  std::ofstream(path) << "port: 31000\npage-size: 64\n";
  const Words args = {"--port", "32000", "--config", path};
  const Result<Words> all = with_config_file(server_flags(), args);
  ASSERT_TRUE(all) << all.error().message;
  const Result<ParseOutcome> parsed = parse_flags("launch_server", "", server_flags(), *all);
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_EQ(parsed->values.integer("port"), 32000);
  EXPECT_EQ(parsed->values.integer("page_size"), 64);
  const Words missing = {"--config=/nowhere.yaml"};
  EXPECT_EQ(with_config_file(server_flags(), missing).error().message, "--config /nowhere.yaml: cannot be read");
}

}  // namespace
}  // namespace tandem::app
