#include "app/flags.h"

#include <gtest/gtest.h>

#include <cmath>

namespace tandem::app {
namespace {

constexpr Flag kTable[] = {
    {"--tp-size,--tensor-parallel-size", FlagKind::kInt, "1", nullptr, FlagSupport::kWorks, "ranks"},
    {"--dp-size", FlagKind::kInt, "1", nullptr, FlagSupport::kWorks, "groups"},
    {"--disable-radix-cache", FlagKind::kSwitch, nullptr, nullptr, FlagSupport::kWorks, "no cache"},
    {"--disable-cuda-graph", FlagKind::kSwitch, nullptr, nullptr, FlagSupport::kHarmless, "no graphs"},
    {"--cuda-graph-bs", FlagKind::kIntList, nullptr, nullptr, FlagSupport::kWorks, "sizes"},
    {"--mode", FlagKind::kString, "auto", "auto|normal|low_latency", FlagSupport::kWorks, "mode"},
    {"--rate", FlagKind::kFloat, "inf", nullptr, FlagSupport::kWorks, "rate"},
    {"--prefill", FlagKind::kStringRows, nullptr, nullptr, FlagSupport::kWorks, "URL [PORT]"},
};

Result<ParseOutcome> parse(std::vector<std::string> args) { return parse_flags("test", "about", kTable, args); }

TEST(Flags, DefaultsFillWhatIsNotGiven) {
  Result<ParseOutcome> outcome = parse({});
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->values.integer("tp_size"), 1);
  EXPECT_EQ(outcome->values.text("mode"), "auto");
  EXPECT_TRUE(std::isinf(outcome->values.number("rate")));
  EXPECT_FALSE(outcome->values.enabled("disable_radix_cache"));
  EXPECT_FALSE(outcome->values.has("cuda_graph_bs"));
  EXPECT_FALSE(outcome->values.given("tp_size"));
}

TEST(Flags, PrefixesAliasesEqualsAndRepetitionsFollowArgparse) {
  Result<ParseOutcome> outcome = parse({"--tp", "8", "--tensor-parallel-size=4", "--cuda-graph-bs", "1", "2", "4",
                                        "--disable-r", "--rate", "2.5", "--cuda-graph-bs", "16", "--mode=normal"});
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->values.integer("tp_size"), 4);
  EXPECT_EQ(outcome->values.integers("cuda_graph_bs"), std::vector<int64_t>{16});
  EXPECT_TRUE(outcome->values.enabled("disable_radix_cache"));
  EXPECT_EQ(outcome->values.number("rate"), 2.5);
  EXPECT_TRUE(outcome->values.given("mode"));
}

TEST(Flags, RowsKeepEveryRepetition) {
  Result<ParseOutcome> outcome = parse({"--prefill", "http://a", "8998", "--prefill", "http://b"});
  ASSERT_TRUE(outcome);
  std::vector<std::vector<std::string>> rows = {{"http://a", "8998"}, {"http://b"}};
  EXPECT_EQ(outcome->values.rows("prefill"), rows);
}

TEST(Flags, FaultsAreOneLineInArgparsesWords) {
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{"--tp", "x"}, "argument --tp-size: invalid int value: 'x'"},
      {{"--tp", "8.5"}, "argument --tp-size: invalid int value: '8.5'"},
      {{"--rate", "nan"}, "argument --rate: invalid float value: 'nan'"},
      {{"--tp"}, "argument --tp-size: expected one argument"},
      {{"--cuda-graph-bs"}, "argument --cuda-graph-bs: expected at least one argument"},
      {{"--mode", "fast"}, "argument --mode: invalid choice: 'fast'"},
      {{"--disable-radix-cache=1"}, "argument --disable-radix-cache: ignored explicit argument '1'"},
      {{"--disable"}, "ambiguous option: --disable could match"},
      {{"--nothing"}, "unrecognized arguments: --nothing"},
      {{"stray"}, "unrecognized arguments: stray"},
      {{"--tp", "1", "stray"}, "unrecognized arguments: stray"},
  };
  for (const auto& [args, message] : cases) {
    Result<ParseOutcome> outcome = parse(args);
    ASSERT_FALSE(outcome) << args[0];
    EXPECT_EQ(outcome.error().message.compare(0, std::string(message).size(), message), 0) << outcome.error().message;
    EXPECT_EQ(outcome.error().message.find('\n'), std::string::npos);
  }
}

TEST(Flags, NegativeNumbersAreValues) {
  Result<ParseOutcome> outcome = parse({"--tp", "-1"});
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->values.integer("tp_size"), -1);
}

}  // namespace
}  // namespace tandem::app
