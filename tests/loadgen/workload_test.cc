#include "loadgen/workload.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>

#include "tests/loadgen/tokenizer.h"

namespace tandem::loadgen {
namespace {

BenchConfig small(const std::string& dataset) {
  BenchConfig config;
  config.dataset_name = dataset;
  config.num_prompts = 40;
  config.random_input_len = 50;
  config.random_output_len = 20;
  return config;
}

Workload make(const BenchConfig& config) {
  auto made = make_workload(config, *tiny_tokenizer(), nullptr);
  EXPECT_TRUE(made) << (made ? "" : made.error().message);
  return made ? *std::move(made) : Workload{};
}

// A ShareGPT file in the test's own directory; removed at the end.
class ShareGptFile {
 public:
  explicit ShareGptFile(int count) : path_(testing::TempDir() + "tandem_workload_sharegpt.json") {
    std::ofstream file(path_);
    file << "[";
    for (int i = 0; i < count; ++i) {
      file << (i ? "," : "") << R"({"conversations": [{"value": "Tell me about item number )" << i
           << R"( please"}, {"value": "It is a good one, that is all there is to say."}]})";
    }
    file << "]";
  }
  ~ShareGptFile() { std::remove(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(Workload, RandomLengthsStayInTheirRangesAndReachTheirEnds) {
  BenchConfig config = small("random-ids");
  config.num_prompts = 2000;
  config.random_input_len = 8;
  config.random_output_len = 5;
  config.random_range_ratio = 0.5;
  std::map<int32_t, int> inputs, outputs;
  for (const WorkItem& item : make(config).items) {
    ++inputs[item.input_len];
    ++outputs[item.output_len];
  }
  EXPECT_EQ(inputs.begin()->first, 4);  // floor(8 * 0.5)
  EXPECT_EQ(inputs.rbegin()->first, 8);
  EXPECT_EQ(outputs.begin()->first, 2);  // floor(5 * 0.5)
  EXPECT_EQ(outputs.rbegin()->first, 5);
  for (auto [length, count] : inputs) EXPECT_NEAR(count, 400, 100) << length;  // 5 standard deviations
}

TEST(Workload, RatioZeroMayAskForNoOutputButNeverForAnEmptyPrompt) {
  BenchConfig config = small("random-ids");
  config.num_prompts = 500;
  config.random_input_len = config.random_output_len = 3;
  int32_t least_input = 99, least_output = 99;
  for (const WorkItem& item : make(config).items) {
    least_input = std::min(least_input, item.input_len);
    least_output = std::min(least_output, item.output_len);
    EXPECT_FALSE(item.text.empty());
  }
  EXPECT_EQ(least_input, 1);
  EXPECT_EQ(least_output, 0);
}

TEST(Workload, RandomIdsCountUpFromAnOffsetModuloTheVocabulary) {
  BenchConfig config = small("random-ids");
  config.tokenize_prompt = true;
  config.random_range_ratio = 1;
  const int32_t vocab = tiny_tokenizer()->vocab_size();
  std::set<int32_t> offsets;
  for (const WorkItem& item : make(config).items) {
    ASSERT_EQ(item.ids.size(), 50u);
    EXPECT_TRUE(item.text.empty());
    for (size_t j = 1; j < item.ids.size(); ++j) EXPECT_EQ(item.ids[j], (item.ids[j - 1] + 1) % vocab);
    offsets.insert(item.ids[0]);
  }
  EXPECT_GT(offsets.size(), 35u);
}

TEST(Workload, RandomTextHasTheTokensThatTheServerWillCount) {
  BenchConfig config = small("random");
  config.random_range_ratio = 1;
  const Workload workload = make(config);
  ASSERT_EQ(workload.notes.size(), 1u);
  std::set<std::string> texts;
  int exact = 0;
  for (const WorkItem& item : workload.items) {
    EXPECT_EQ(item.input_len, 50);
    EXPECT_EQ(item.output_len, 20);
    const auto counted = int32_t(tiny_tokenizer()->encode(item.text, true).size());
    EXPECT_NEAR(counted, item.input_len, 1) << item.text;  // cut inside a word, the last piece may merge anew
    exact += counted == item.input_len;
    texts.insert(item.text);
  }
  EXPECT_GT(exact, 30);
  EXPECT_EQ(texts.size(), workload.items.size()) << "prompts must differ, or the prefix cache answers for them";
}

TEST(Workload, RandomWithIdsSendsExactlyTheLengthWithTheSentenceStartFirst) {
  BenchConfig config = small("random");
  config.tokenize_prompt = true;
  ASSERT_TRUE(tiny_tokenizer()->bos_id());
  for (const WorkItem& item : make(config).items) {
    EXPECT_EQ(int32_t(item.ids.size()), item.input_len);
    if (item.input_len < 2) continue;
    EXPECT_EQ(item.ids[0], *tiny_tokenizer()->bos_id());
  }
}

TEST(Workload, RandomRepeatsOrCutsTheFilesPromptsToLength) {
  const ShareGptFile file(30);
  BenchConfig config = small("random");
  config.num_prompts = 20;
  config.dataset_path = file.path();
  config.random_range_ratio = 1;
  config.tokenize_prompt = true;
  const Workload workload = make(config);
  ASSERT_EQ(workload.items.size(), 20u);
  const std::string text = tiny_tokenizer()->decode(workload.items[0].ids, true);
  const size_t first = text.find("Tell me about item number");
  ASSERT_EQ(first, 0u) << text;
  EXPECT_NE(text.find("Tell me", 10), std::string::npos) << text;  // about 10 tokens, repeated to 50
}

TEST(Workload, SharedPrefixGroupsShareTheirSystemPrompt) {
  BenchConfig config = small("generated-shared-prefix");
  config.gsp_num_groups = 3;
  config.gsp_prompts_per_group = 5;
  config.gsp_system_prompt_len = 60;
  config.gsp_question_len = 10;
  config.gsp_output_len = 9;
  const Workload workload = make(config);
  ASSERT_EQ(workload.items.size(), 15u);
  ASSERT_EQ(workload.notes.size(), 1u);
  std::map<std::string, int> members;
  for (const WorkItem& item : workload.items) {
    ++members[item.text.substr(0, 40)];
    EXPECT_EQ(item.output_len, 9);
    EXPECT_EQ(item.input_len, int32_t(tiny_tokenizer()->encode(item.text, true).size()));
    EXPECT_NE(item.text.find("\n\n"), std::string::npos);
  }
  EXPECT_EQ(members.size(), 3u);
  for (const auto& [prefix, count] : members) EXPECT_EQ(count, 5) << prefix;
}

TEST(Workload, ShareGptTakesTheAnswersTokensAsLengthAndShuffles) {
  const ShareGptFile file(30);
  BenchConfig config = small("sharegpt");
  config.dataset_path = file.path();
  const Workload workload = make(config);
  EXPECT_EQ(workload.items.size(), 30u);
  ASSERT_EQ(workload.notes.size(), 1u) << "fewer prompts than asked for must be said";
  const auto answer = tiny_tokenizer()->encode("It is a good one, that is all there is to say.", true).size();
  bool in_order = true;
  for (size_t i = 0; i < workload.items.size(); ++i) {
    EXPECT_EQ(workload.items[i].output_len, int32_t(answer));
    in_order &= workload.items[i].text.find("number " + std::to_string(i) + " ") != std::string::npos;
  }
  EXPECT_FALSE(in_order);
}

TEST(Workload, ShareGptLengthContextSuffixAndTemplateAreApplied) {
  const ShareGptFile file(30);
  BenchConfig config = small("sharegpt");
  config.dataset_path = file.path();
  config.sharegpt_output_len = 11;
  config.prompt_suffix = " Be brief.";
  for (const WorkItem& item : make(config).items) {
    EXPECT_EQ(item.output_len, 11);
    EXPECT_TRUE(item.text.ends_with("please Be brief.")) << item.text;
  }
  config.sharegpt_context_len = 12;
  auto none = make_workload(config, *tiny_tokenizer(), nullptr);
  ASSERT_FALSE(none) << "no prompt fits";
  EXPECT_NE(none.error().message.find("no usable prompt"), std::string::npos);

  config.sharegpt_context_len.reset();
  config.apply_chat_template = true;
  auto chat_template = text::ChatTemplate::load(tiny_directory());
  ASSERT_TRUE(chat_template) << chat_template.error().message;
  auto made = make_workload(config, *tiny_tokenizer(), &*chat_template);
  ASSERT_TRUE(made) << made.error().message;
  const std::string& text = made->items[0].text;
  EXPECT_TRUE(text.starts_with("<｜User｜>Tell me")) << text;
  EXPECT_NE(text.find("<｜Assistant｜>"), std::string::npos) << text;
}

TEST(Workload, TheSameSeedGivesTheSameWorkloadAndAnotherSeedAnother) {
  for (const char* dataset : {"random", "random-ids", "generated-shared-prefix"}) {
    BenchConfig config = small(dataset);
    config.gsp_num_groups = config.gsp_prompts_per_group = 3;
    config.gsp_system_prompt_len = 30;
    auto texts = [&] {
      std::vector<std::string> all;
      for (const WorkItem& item : make(config).items) all.push_back(std::to_string(item.output_len) + item.text);
      return all;
    };
    const auto first = texts();
    EXPECT_EQ(texts(), first) << dataset;
    config.seed = 2;
    EXPECT_NE(texts(), first) << dataset;
  }
}

TEST(ArrivalTimes, StartAtZeroAndFollowThePoissonRate) {
  const auto times = arrival_times(20001, 50, 7);
  EXPECT_EQ(times[0], Duration::zero());
  EXPECT_TRUE(std::is_sorted(times.begin(), times.end()));
  EXPECT_NEAR(seconds(times.back()), 20000 / 50.0, 15);  // 5 standard deviations of the sum
  int long_gaps = 0;
  for (size_t i = 1; i < times.size(); ++i) long_gaps += seconds(times[i] - times[i - 1]) > 1 / 50.0;
  EXPECT_NEAR(long_gaps / 20000.0, 0.3679, 0.02) << "an exponential gap is above its mean with probability 1/e";
  EXPECT_EQ(arrival_times(20001, 50, 7), times);
  EXPECT_NE(arrival_times(20001, 50, 8), times);
}

TEST(ArrivalTimes, AnInfiniteRateIsAllAtOnceAndATinyOneDoesNotOverflow) {
  for (Duration at : arrival_times(5, INFINITY, 1)) EXPECT_EQ(at, Duration::zero());
  const auto slow = arrival_times(100, 1e-300, 1);
  EXPECT_TRUE(std::is_sorted(slow.begin(), slow.end()));
  EXPECT_GT(slow[1], Duration::zero());
}

}  // namespace
}  // namespace tandem::loadgen
