#include "experts/files.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "experts/torch_file.h"

namespace tandem::experts {
namespace {

const std::string kGolden = TANDEM_SOURCE_DIR "/tests/data/experts/";
constexpr ExpertShape kAny{};

Result<ExpertFile> parse(const std::string& text, const ExpertShape& want = kAny,
                         StepDetail detail = StepDetail::kSum) {
  return parse_expert_file({reinterpret_cast<const uint8_t*>(text.data()), text.size()}, "f", want, detail);
}

LoadFile load_of(const std::string& text, StepDetail detail = StepDetail::kSum) {
  Result<ExpertFile> file = parse(text, kAny, detail);
  EXPECT_TRUE(file) << file.error().message;
  if (!file || !std::holds_alternative<LoadFile>(*file)) return {};
  return std::get<LoadFile>(*std::move(file));
}

PlacementFile placement_of(const std::string& text, const ExpertShape& want = kAny) {
  Result<ExpertFile> file = parse(text, want);
  EXPECT_TRUE(file) << file.error().message;
  if (!file || !std::holds_alternative<PlacementFile>(*file)) return {};
  return std::get<PlacementFile>(*std::move(file));
}

std::string fault_of(const std::string& text, const ExpertShape& want = kAny) {
  const Result<ExpertFile> file = parse(text, want);
  if (file) return "read";
  EXPECT_EQ(file.error().message.find('\n'), std::string::npos);
  return file.error().message;
}

std::string safetensors(const std::string& header, const std::vector<int32_t>& data) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(char(header.size() >> (8 * i)));
  bytes += header;
  bytes.append(reinterpret_cast<const char*>(data.data()), data.size() * sizeof(int32_t));
  return bytes;
}

class Folder {
 public:
  Folder() {
    std::string name = std::filesystem::temp_directory_path() / "tandem-files-XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string path(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

TEST(LoadFiles, ARecordersDumpIsSummedOverSteps) {
  const LoadFile file = read_load(std::vector{kGolden + "stat.pt"}, {2, 4, 0}, StepDetail::kKeepSteps).value();
  EXPECT_EQ(file.num_steps, 3);
  EXPECT_EQ(file.load, (ExpertLoad{2, 4, {24, 27, 30, 33, 36, 39, 42, 45}}));
  ASSERT_EQ(file.steps.size(), 3U);
  EXPECT_EQ(file.steps[1].tokens, (std::vector<int64_t>{8, 9, 10, 11, 12, 13, 14, 15}));
}

TEST(LoadFiles, RecordsOfSeveralRanksAddUpAsLogicalExperts) {
  const std::vector<std::string> paths{kGolden + "per_token_0.pt", kGolden + "per_token_1.pt"};
  const LoadFile one = read_load(std::span(paths).first(1), kAny, StepDetail::kSum).value();
  EXPECT_EQ(one.load, (ExpertLoad{2, 4, {24, 24, 12, 12, 36, 12, 12, 12}}));  // 1 + 11 per slot of an expert
  const LoadFile both = read_load(paths, kAny, StepDetail::kKeepSteps).value();
  EXPECT_EQ(both.load, (ExpertLoad{2, 4, {52, 52, 26, 26, 78, 26, 26, 26}}));
  EXPECT_EQ(both.num_steps, 2);
  EXPECT_EQ(both.ranks, (std::vector<int32_t>{0, 1}));
  ASSERT_EQ(both.steps.size(), 2U);
  EXPECT_EQ(both.steps[0].tokens, (std::vector<int64_t>{6, 6, 3, 3, 9, 3, 3, 3}));
  const auto twice = read_load(std::vector{paths[0], paths[0]}, kAny, StepDetail::kSum);
  EXPECT_TRUE(twice.error().message.ends_with("per_token_0.pt: the records of rank 0 are in another file, too"));
  const auto mixed = read_load(std::vector{kGolden + "stat.pt", paths[0]}, kAny, StepDetail::kSum);
  EXPECT_FALSE(mixed);
}

TEST(LoadFiles, DumpsMadeOneAfterTheOtherAddUp) {
  const std::string stat = kGolden + "stat.pt";
  const LoadFile file = read_load(std::vector{stat, stat}, kAny, StepDetail::kKeepSteps).value();
  EXPECT_EQ(file.num_steps, 6);
  EXPECT_EQ(file.steps.size(), 6U);
  EXPECT_EQ(file.load.tokens[7], 90);
}

TEST(LoadFiles, JsonCountsMayHaveStepsAndFractions) {
  const ExpertLoad expected{2, 2, {1, 2, 3, 4}};
  EXPECT_EQ(load_of(R"({"logical_count": [[1, 2], [3, 4]]})").load, expected);
  EXPECT_EQ(load_of(R"({"logical_count": [[1.0, 2], [3e0, 4.0]], "more": [{"a": 1}]})").load, expected);
  const LoadFile steps = load_of(R"({"logical_count": [[[1, 0], [3, 0]], [[0, 2], [0, 4]]]})", StepDetail::kKeepSteps);
  EXPECT_EQ(steps.load, expected);
  EXPECT_EQ(steps.steps[1], (ExpertLoad{2, 2, {0, 2, 0, 4}}));
  const LoadFile fractions = load_of(R"({"logical_count": [[0.25, 0.75]]})");
  EXPECT_TRUE(fractions.scaled);
  EXPECT_EQ(fractions.load.tokens[1], 3 * fractions.load.tokens[0]);
  EXPECT_FALSE(steps.scaled);
  EXPECT_EQ(load_of(R"({"logical_count": [[0, 0]]})").load, (ExpertLoad{1, 2, {0, 0}}));
}

TEST(LoadFiles, SafetensorsRecordingsAreRead) {
  const std::string file =
      safetensors(R"({"__metadata__":{"phase":"decode","epoch":"7"},"logical_count":{"dtype":"I32","shape":[2,1,2],)"
                  R"("data_offsets":[0,16]}})",
                  {1, 2, 3, 4});
  const LoadFile load = load_of(file);
  EXPECT_EQ(load.load, (ExpertLoad{1, 2, {4, 6}}));
  EXPECT_EQ(load.facts.phase, "decode");
  EXPECT_EQ(load.facts.epoch, 7);
}

TEST(LoadFiles, FaultsAreNamed) {
  const std::pair<std::string, const char*> cases[] = {
      {"{", "f: not valid JSON"},
      {"", "f: neither JSON nor a .pt archive nor safetensors"},
      {"[1]", "f: is not an object with named tables"},
      {"{}", "f: has none of the keys 'physical_to_logical_map', 'logical_count' and 'records'"},
      {R"({"logical_count": [1, 2]})",
       "f: 'logical_count' has 1 dimensions; wanted [layers, experts] or [steps, layers, experts]"},
      {R"({"logical_count": [[1, 2], [3]]})", "f: 'logical_count': a list of 1 entries, those before it have 2"},
      {R"({"logical_count": [[1, 2], 3]})", "f: 'logical_count': lists and numbers are mixed"},
      {R"({"logical_count": [[1, [2]]]})", "f: 'logical_count': lists and numbers are mixed"},
      {R"({"logical_count": [[1, null]]})", "f: 'logical_count': holds something that is not a number"},
      {R"({"logical_count": [[1, -2]]})", "f: 'logical_count' holds -2 at entry 1"},
      {R"({"logical_count": [[1, 1e300]]})", "f: 'logical_count' holds 1e+300 at entry 1"},
      {R"({"logical_count": [[[9e15]], [[9e15]]]})", "f: the counts of one expert add up to more than 2^53"},
      {R"({"logical_count": "x"})", "f: 'logical_count': holds something that is not a number"},
      {R"({"logical_count": [[]]})", "f: a table of 0 experts"},
      {R"({"logical_count": [[1]], "format": "expert-placement"})", "f: format 'expert-placement', not 'expert-load'"},
      {R"({"logical_count": [[1]], "version": 2})", "f: version 2 of the format; this program reads version 1"},
      {R"({"logical_count": [[1]], "layers": 2})", "f: 'layers' says 2, the table has 1"},
      {R"({"logical_count": [[1]], "epoch": "x"})", "f: 'epoch' should be a number"},
      {R"({"records": [{}]})", "f: has 'records' but no 'last_physical_to_logical_map'"},
      {R"({"records": [{}], "last_physical_to_logical_map": [[0]]})", "f: record 0: no 'global_physical_count'"},
      {R"({"records": [{}], "last_physical_to_logical_map": [[1]]})",
       "f: 'last_physical_to_logical_map' names expert 1"},
      {R"({"records": [{"global_physical_count": [[1]]}], "last_physical_to_logical_map": [[0, 0]]})",
       "f: record 0: 'global_physical_count' is not a table of whole numbers as large as the map"},
  };
  for (const auto& [text, message] : cases) {
    EXPECT_EQ(fault_of(text).substr(0, std::string(message).size()), message) << text;
  }
}

TEST(LoadFiles, ADumpOfAnotherModelIsRefused) {
  const auto fault = [](const ExpertShape& want) {
    return read_load(std::vector{kGolden + "stat.pt"}, want, StepDetail::kSum).error().message.substr(kGolden.size());
  };
  EXPECT_EQ(fault({3, 4, 0}), "stat.pt: 2 layers of 4 experts, but the model has 3 layers of 4");
  EXPECT_EQ(fault({2, 8, 0}), "stat.pt: 2 layers of 4 experts, but the model has 2 layers of 8");
}

TEST(LoadFiles, BrokenSafetensorsAreNamed) {
  const auto header = [](const std::string& entry) { return safetensors("{\"logical_count\":" + entry + "}", {1, 2}); };
  EXPECT_EQ(fault_of(header(R"({"dtype":"I32","shape":[1,2],"data_offsets":[0,8]})")), "read");
  const std::pair<const char*, const char*> cases[] = {
      {R"({"dtype":"I32","shape":[1,2],"data_offsets":[0,12]})", "bytes [0, 12) of 8"},
      {R"({"dtype":"I32","shape":[1,2],"data_offsets":[4,0]})", "bytes [4, 0) of 8"},
      {R"({"dtype":"I32","shape":[1,3],"data_offsets":[0,8]})", "3 elements of I32 in 8 bytes"},
      {R"({"dtype":"I32","shape":[4294967296,4294967296],"data_offsets":[0,8]})", "absurd sizes"},
      {R"({"dtype":"I32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]})", "absurd sizes"},
      {R"({"dtype":"F8","shape":[1,2],"data_offsets":[0,8]})", "dtype 'F8' is not read"},
      {R"({"dtype":"I32","shape":[1,2]})", "needs dtype, shape, data_offsets"},
      {R"({"dtype":"I32","shape":[1,2],"data_offsets":[0,8]},"b":{"dtype":"I32","shape":[1],"data_offsets":[0,4]})",
       "overlaps another"},
  };
  for (const auto& [entry, message] : cases) {
    EXPECT_NE(fault_of(header(entry)).find(message), std::string::npos) << fault_of(header(entry));
  }
  EXPECT_EQ(fault_of(std::string("\x7f\0\0\0\0\0\0\0{}", 10)),
            "f: the header of 127 bytes does not fit in a file of 10");
}

TEST(PlacementFiles, TheMapAloneIsEnough) {
  const PlacementFile file = placement_of(R"({"physical_to_logical_map": [[0, 1, 2, 0], [2, 1, 0, 2]]})");
  EXPECT_EQ(file.placement, (ExpertPlacement{2, 3, 4, {0, 1, 2, 0, 2, 1, 0, 2}, {}}));
  EXPECT_EQ(read_placement(kGolden + "placement.pt", {2, 4, 6})->placement.logical_of_slot,
            (std::vector<int32_t>{0, 1, 2, 3, 0, 1, 3, 2, 1, 0, 0, 0}));
}

TEST(PlacementFiles, SharesBecomePartsThatAddUp) {
  const PlacementFile file =
      placement_of(R"({"physical_to_logical_map": [[0, 1, 0, 0]], "replica_share": [[0.333, 1, 0.333, 0.333]]})");
  EXPECT_EQ(file.placement.share, (std::vector<int32_t>{21846, 65536, 21845, 21845}));
  EXPECT_EQ(fault_of(R"({"physical_to_logical_map": [[0, 0]], "replica_share": [[0.5, 0.4]]})"),
            "f: 'replica_share', layer 0, expert 0: the shares sum to 0.9000");
  EXPECT_EQ(fault_of(R"({"physical_to_logical_map": [[0, 0]], "replica_share": [[1.5, -0.5]]})"),
            "f: 'replica_share', layer 0, expert 0: a share of -0.5");
  EXPECT_EQ(fault_of(R"({"physical_to_logical_map": [[0, 0]], "replica_share": [[1.0]]})"),
            "f: 'replica_share' has another shape than the map");
}

TEST(PlacementFiles, FaultsAreNamed) {
  const std::string map = R"({"physical_to_logical_map": [[0, 1, 2, 0]])";
  const std::pair<std::string, const char*> cases[] = {
      {map + R"(, "logical_count": [[1]]})", "f: a placement has no key 'logical_count'"},
      {map + R"(, "experts": 4})", "f: layer 0: expert 3 has no slot"},
      {map + R"(, "experts": 2})", "f: layer 0, slot 2: expert 2 is not in [0, 2)"},
      {map + R"(, "slots": 5})", "f: 'slots' says 5, the table has 4"},
      {map + R"(, "crc32": 1})", "f: the map's crc32 is 893059143, not the one in the file"},
      {map + R"(, "format": "expert-load"})", "f: format 'expert-load', not 'expert-placement'"},
      {R"({"physical_to_logical_map": [[0, 2, 2, 0]]})", "f: layer 0: expert 1 has no slot"},
      {R"({"physical_to_logical_map": [[0, 1], [0, 5]]})", "f: layer 1, slot 1: there is no expert 5 among 2 slots"},
      {R"({"physical_to_logical_map": [[0, -1]]})", "f: layer 0, slot 1: there is no expert -1 among 2 slots"},
      {R"({"physical_to_logical_map": [0, 1]})",
       "f: 'physical_to_logical_map' is not a table of whole numbers [layers, slots]"},
      {R"({"physical_to_logical_map": [[0.5, 1]]})",
       "f: 'physical_to_logical_map' is not a table of whole numbers [layers, slots]"},
      {R"({"physical_to_logical_map": []})",
       "f: 'physical_to_logical_map' is not a table of whole numbers [layers, slots]"},
  };
  for (const auto& [text, message] : cases) EXPECT_EQ(fault_of(text), message) << text;
  EXPECT_EQ(fault_of(map + "}", {1, 3, 6}), "f: 'physical_to_logical_map' has 4 slots per layer; wanted 6");
  EXPECT_EQ(fault_of(map + "}", {2, 3, 4}), "f: 1 layers of 3 experts, but the model has 2 layers of 3");
  EXPECT_EQ(fault_of(map + "}", {1, 4, 4}), "f: layer 0: expert 3 has no slot");
}

TEST(PlacementFiles, InitExpertLocationTakesItsFourForms) {
  EXPECT_TRUE(std::holds_alternative<TrivialLocation>(read_init_expert_location("trivial", kAny).value()));
  EXPECT_TRUE(
      std::holds_alternative<PlacementFile>(read_init_expert_location(kGolden + "placement.pt", {2, 4, 6}).value()));
  EXPECT_TRUE(std::holds_alternative<LoadFile>(read_init_expert_location(kGolden + "stat.pt", {2, 4, 6}).value()));
  EXPECT_TRUE(std::holds_alternative<PlacementFile>(
      read_init_expert_location(R"({"physical_to_logical_map": [[0, 1]]})", kAny).value()));
  EXPECT_EQ(read_init_expert_location("nowhere.json", kAny).error().message, "nowhere.json: no such file");
  EXPECT_EQ(read_init_expert_location("trivia", kAny).error().message,
            "inline JSON: neither JSON nor a .pt archive nor safetensors");
  EXPECT_EQ(read_placement(kGolden + "stat.pt", kAny).error().message, kGolden + "stat.pt: is a load, not a placement");
}

TEST(ExpertFiles, EveryFormRoundTrips) {
  const Folder folder;
  LoadFile load;
  load.load = {2, 3, {1, 2, 3, 0, int64_t{1} << 40, 0}};
  load.facts.model = "tiny \"one\"";
  load.facts.phase = "prefill";
  load.facts.window_tokens = 1234;
  load.facts.window_end_unix = 1700000000.25;
  PlacementFile plan;
  plan.placement = {1, 2, 3, {0, 1, 0}, {16384, 65536, 49152}};
  plan.facts = load.facts;
  plan.facts.balancedness = 0.97;
  plan.facts.num_gpus = 3;
  for (const char* name : {"x.json", "x.pt"}) {
    const std::string path = folder.path(name);
    ASSERT_TRUE(write_load(path, load));
    const LoadFile read = read_load(std::vector{path}, {2, 3, 0}, StepDetail::kSum).value();
    EXPECT_EQ(read.load, load.load);
    EXPECT_EQ(read.facts, path.ends_with(".json") ? load.facts : FileFacts{});
    ASSERT_TRUE(write_placement(path, plan, PlacementForm::kOpen));
    const PlacementFile read_plan = read_placement(path, {1, 2, 3}).value();
    EXPECT_EQ(read_plan.placement, plan.placement);
    EXPECT_EQ(read_plan.facts, plan.facts);
    ASSERT_TRUE(write_placement(path, plan, PlacementForm::kSglang));
    EXPECT_EQ(read_placement(path, kAny)->placement, (ExpertPlacement{1, 2, 3, {0, 1, 0}, {}}));
  }
  EXPECT_EQ(format_placement_json(plan, PlacementForm::kSglang),
            "{\n  \"physical_to_logical_map\": [\n    [0, 1, 0]\n  ]\n}\n");
  EXPECT_EQ(write_load(folder.path("x.txt"), load).error().message,
            folder.path("x.txt") + ": should end in .json or .pt");
  EXPECT_EQ(write_load(folder.path("none/x.pt"), load).error().message,
            folder.path("none/x.pt") + ": cannot be written");
}

TEST(ExpertFiles, ADamagedMapDoesNotMatchItsChecksum) {
  PlacementFile plan;
  plan.placement = {1, 2, 4, {0, 1, 0, 1}, {}};
  std::string text = format_placement_json(plan, PlacementForm::kOpen);
  const size_t at = text.rfind("0, 1]");
  ASSERT_NE(at, std::string::npos);
  EXPECT_EQ(fault_of(text), "read");
  text[at] = '1';
  EXPECT_NE(fault_of(text).find("crc32"), std::string::npos);
}

TEST(ExpertFiles, ARecordersDumpKeepsItsKeysAndType) {
  LoadFile load;
  load.load = {1, 2, {5, 6}};
  const std::string file = format_load_torch(load).value();
  const TorchValue value =
      parse_torch_file({reinterpret_cast<const uint8_t*>(file.data()), file.size()}, "f.pt").value();
  const TorchTensor& counts = *value.dict()->find("logical_count")->tensor();
  EXPECT_EQ(counts.type, TorchType::kInt32);
  EXPECT_EQ(counts.shape, (std::vector<int64_t>{1, 1, 2}));
  EXPECT_TRUE(value.dict()->find("average_utilization_rate_over_window")->is_none());
  EXPECT_EQ(*value.dict()->find("rank"), TorchValue{int64_t{0}});
}

}  // namespace
}  // namespace tandem::experts
