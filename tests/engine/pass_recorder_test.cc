// Recordings of single passes, and what is said of each pass's balance. C refers to the balancing contract's list.
#include "engine/experts/pass_recorder.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "engine/experts/pass_dump.h"
#include "engine/experts/pass_meter.h"
#include "experts/files.h"
#include "experts/torch_file.h"
#include "model/model.h"

namespace tandem::testing {
namespace {

using engine::PassLoad;
using engine::PassMeter;
using engine::PassRecorder;
using engine::PassRecording;
using engine::RecorderMode;

// Layer 0 is dense; layer 1 has four slots of three experts on two ranks; two experts per token.
constexpr int32_t kLayers = 2, kSlots = 4, kTopK = 2, kRanks = 2;
const std::vector<int32_t> kFirstRow = {0, 1, 2, 0}, kSecondRow = {2, 1, 0, 0};

kernels::ExpertWeights make_expert() {
  static const std::vector<float> values(2 * 16 * 16, 1.0F);
  const auto pack = [&](int64_t rows) {
    kernels::RawWeight raw;
    raw.data = values.data();
    raw.rows = rows;
    raw.cols = raw.row_stride = 16;
    return kernels::pack(kernels::Backend::kRef, kernels::Isa::kAvx2, {raw});
  };
  return {pack(32), pack(16)};
}

struct Rig {
  explicit Rig(RecorderMode mode, bool measures = false)
      : slots({{1}, kLayers, kSlots / kRanks, 0}, make_expert()),
        recorder((place(kFirstRow), config(mode, measures)), slots) {}

  static engine::PassRecorderConfig config(RecorderMode mode, bool measures) {
    return {.mode = mode, .measures = measures, .num_ranks = kRanks, .top_k = kTopK};
  }
  void place(const std::vector<int32_t>& row) { slots.set_placement(1, row, {}); }

  // A pass of tokens that went to these slots of layer 1, one sequence.
  void pass(uint64_t id, const std::vector<int32_t>& chosen, model::Phase phase = model::Phase::kPrefill) {
    const auto tokens = int32_t(chosen.size()) / kTopK;
    std::vector<int32_t> ids, positions;
    for (int32_t i = 0; i < tokens; ++i) ids.push_back(100 + i), positions.push_back(i);
    const std::vector<kernels::SequenceSpan> sequences(tokens > 0 ? 1 : 0, {0, tokens, 0, nullptr});
    model::ForwardBatch batch;
    batch.phase = phase;
    batch.token_ids = ids;
    batch.positions = positions;
    batch.sequences = sequences;
    recorder.before_forward(batch);
    for (size_t i = 0; i < chosen.size(); ++i) {
      if (batch.slot_counts != nullptr) batch.slot_counts[kSlots + chosen[i]] += 1;
      if (batch.chosen_slots != nullptr) batch.chosen_slots[chosen.size() + i] = chosen[i];
    }
    recorder.after_forward(id, version, batch);
  }

  model::ExpertSlots slots;
  PassRecorder recorder;
  uint32_t version = 0;
};

std::vector<uint64_t> ids_of(const PassRecording& recording) {
  std::vector<uint64_t> ids;
  for (const engine::PassRecord& record : recording.passes) ids.push_back(record.pass_id);
  return ids;
}

experts::ExpertPlacement placement_of(const std::vector<int32_t>& row) {
  experts::ExpertPlacement placement = experts::trivial_placement(kLayers, 3, kSlots);
  std::copy(row.begin(), row.end(), placement.logical_of_slot.begin() + kSlots);
  return placement;
}

std::vector<std::string> dump(RecorderMode mode, const std::vector<int32_t>& last, std::span<PassRecording> ranks) {
  const std::string directory = ::testing::TempDir() + "tandem_pass_dump";
  std::filesystem::remove_all(directory);
  const auto paths = engine::dump_pass_files(directory, 12.5, mode, placement_of(last), 0, ranks);
  EXPECT_TRUE(paths) << paths.error().message;
  return *paths;
}

experts::TorchValue parse(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  return experts::parse_torch_file({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, path).value();
}

TEST(PassRecorder, KeepsPassesFromTheNextOneAfterTheStartUntilTheStop) {
  Rig rig(RecorderMode::kPerPass);
  rig.pass(1, {0, 1});
  rig.recorder.start(10, 1 << 20);
  rig.pass(2, {0, 1, 3, 1});
  rig.pass(3, {});
  rig.recorder.stop();
  rig.pass(4, {2, 1});
  const PassRecording taken = rig.recorder.take();
  EXPECT_EQ(ids_of(taken), (std::vector<uint64_t>{2, 3}));
  const auto counts = taken.passes[0].counts(taken.sizes);
  EXPECT_EQ(std::vector<int32_t>(counts.begin(), counts.end()), (std::vector<int32_t>{0, 0, 0, 0, 1, 2, 0, 1}));
  EXPECT_EQ(taken.passes[1].kind, engine::PassKind::kIdle);
  EXPECT_TRUE(rig.recorder.take().passes.empty());
}

TEST(PassRecorder, OfAFullBufferTheOldestGoAndAreCounted) {
  Rig rig(RecorderMode::kPerPass);
  rig.recorder.start(3, 1 << 20);
  for (uint64_t id = 0; id < 8; ++id) rig.pass(id, {0, 1});
  const PassRecording taken = rig.recorder.take();
  EXPECT_EQ(ids_of(taken), (std::vector<uint64_t>{5, 6, 7}));
  EXPECT_EQ(taken.dropped, 5);
  rig.pass(8, {0, 1});
  EXPECT_EQ(rig.recorder.take().dropped, 0);
}

TEST(PassRecorder, TheCeilingInBytesHoldsWhateverThePassesSizes) {
  Rig rig(RecorderMode::kPerToken);
  const int64_t ceiling = 3 * rig.recorder.record_bytes(8, 1);
  rig.recorder.start(1000, ceiling);
  const auto bytes_of = [](const PassRecording& recording) {
    int64_t bytes = 0;
    for (const auto& record : recording.passes) bytes += int64_t(sizeof(record) + record.values.capacity() * 4);
    return bytes;
  };
  for (uint64_t id = 0; id < 50; ++id) {
    rig.pass(id, std::vector<int32_t>(size_t(2 * (id * 7 % 9)), 1));
    if (id % 10 != 9) continue;
    const PassRecording taken = rig.recorder.take();
    EXPECT_LE(bytes_of(taken), ceiling);
    EXPECT_GE(taken.passes.size(), 3u);
    EXPECT_EQ(taken.passes.size() + size_t(taken.dropped), 10u);
  }
  rig.pass(50, std::vector<int32_t>(1000, 1));  // larger than all
  const PassRecording none = rig.recorder.take();
  EXPECT_TRUE(none.passes.empty());
  EXPECT_EQ(none.dropped, 1);
}

// C3: keys, shapes and values are those of SGLang's recorder.
TEST(PassRecorder, C3_APerTokenDumpHasTheRecordersForm) {
  Rig rig(RecorderMode::kPerToken);
  rig.recorder.start(10, 1 << 20);
  rig.pass(7, {0, 1, 3, 1});
  rig.pass(8, {2, 3}, model::Phase::kDecode);
  std::vector<PassRecording> ranks{rig.recorder.take()};
  const std::vector<std::string> paths = dump(RecorderMode::kPerToken, kFirstRow, ranks);
  ASSERT_EQ(paths.size(), 1u);
  EXPECT_TRUE(paths[0].ends_with("/expert_distribution_recorder_12.500000_0.pt")) << paths[0];
  const experts::TorchValue file = parse(paths[0]);
  const auto& records = *file.dict()->find("records")->get_if<experts::TorchValue::List>();
  ASSERT_EQ(records.size(), 2u);
  const experts::TorchValue::Dict &extend = *records[0].dict(), &decode = *records[1].dict();
  const auto list = [](std::vector<int64_t> values) {
    experts::TorchValue::List items;
    for (int64_t value : values) items.push_back({value});
    return experts::TorchValue{items};
  };
  EXPECT_EQ(*extend.find("forward_pass_id"), experts::TorchValue{int64_t(7)});
  EXPECT_EQ(*extend.find("rank"), experts::TorchValue{int64_t(0)});
  EXPECT_EQ(*extend.find("gatherer_key"), experts::TorchValue{std::string("primary")});
  EXPECT_EQ(*extend.find("input_ids"), list({100, 101}));
  EXPECT_EQ(*extend.find("positions"), list({0, 1}));
  EXPECT_EQ(*extend.find("extend_seq_lens"), list({2}));
  EXPECT_EQ(*extend.find("forward_mode"), experts::TorchValue{int64_t(1)});
  EXPECT_TRUE(decode.find("extend_seq_lens")->is_none());
  EXPECT_EQ(*decode.find("forward_mode"), experts::TorchValue{int64_t(2)});
  const std::vector<int64_t> ids{-1, -1, -1, -1, 0, 1, 3, 1};
  EXPECT_EQ(*extend.find("topk_ids_of_layer")->tensor(),
            experts::integer_tensor(experts::TorchType::kInt32, {kLayers, 2, kTopK}, ids));
  const std::vector<int64_t> counts{0, 0, 0, 0, 1, 2, 0, 1};
  EXPECT_EQ(*extend.find("global_physical_count")->tensor(),
            experts::integer_tensor(experts::TorchType::kInt32, {kLayers, kSlots}, counts));
  EXPECT_EQ(extend.find("placement_version"), nullptr);
  EXPECT_EQ(file.dict()->find("placements"), nullptr);
}

// C2: what a pass hit stays what it was when experts move later.
TEST(PassRecorder, C2_PassesOfAnEarlierPlacementKeepTheirExperts) {
  Rig rig(RecorderMode::kPerPass);
  rig.recorder.start(10, 1 << 20);
  rig.pass(1, {0, 1});  // experts 0 and 1
  rig.place(kSecondRow);
  rig.version = 1;
  rig.pass(2, {0, 1});  // experts 2 and 1
  std::vector<PassRecording> ranks{rig.recorder.take()};
  const std::vector<std::string> paths = dump(RecorderMode::kPerPass, kSecondRow, ranks);
  const auto load = experts::read_load(paths, {kLayers, 3, 0}, experts::StepDetail::kKeepSteps);
  ASSERT_TRUE(load) << load.error().message;
  EXPECT_EQ(load->pass_ids, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(load->steps[0].tokens, (std::vector<int64_t>{0, 0, 0, 1, 1, 0}));
  EXPECT_EQ(load->steps[1].tokens, (std::vector<int64_t>{0, 0, 0, 0, 1, 1}));
}

TEST(PassRecorder, MapsOfPlacementsThatNoPassIsOfAreGone) {
  Rig rig(RecorderMode::kPerPass);
  rig.recorder.start(2, 1 << 20);
  for (rig.version = 0; rig.version < 5; ++rig.version) rig.pass(rig.version, {0, 1});
  EXPECT_EQ(rig.recorder.take().maps.size(), 2u);
}

TEST(PassMeter, LinesAreThoseOfTheContractAndWaitForEveryRank) {
  profile::Metrics metrics;
  PassMeter meter({.num_ranks = 2, .num_layers = 2, .heatmap_interval = 1, .model_name = "tiny"}, metrics);
  EXPECT_TRUE(meter.add({{5, {0, 0, 4, 1}}, {6, {0, 0, 2, 2}}}, 2).empty());
  const std::vector<std::string> lines = meter.add({{5, {0, 0, 2, 1}}, {6, {0, 0, 0, 4}}}, 2);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(
      lines[0],
      "[Expert Balancedness] forward_pass_id=5 current_pass_balancedness=0.667 last_10_average_balancedness=0.667 "
      "last_100_average_balancedness=0.667 last_1000_average_balancedness=0.667  gpu_physical_count_sum=8");
  // 2 against 6, then 2 + 4 of mean 4: (4 + 4) / (6 + 6).
  EXPECT_NE(lines[1].find("current_pass_balancedness=0.667 last_10_average_balancedness=0.667"), std::string::npos);
  const std::string text = metrics.scrape();
  EXPECT_NE(text.find("tandem:eplb_window_balancedness{model_name=\"tiny\",passes=\"1000\"} 0.666"), std::string::npos);
  EXPECT_NE(text.find("sglang:eplb_gpu_physical_count_bucket{layer=\"1\",le=\"0\"} 8"), std::string::npos) << text;
  EXPECT_NE(text.find("sglang:eplb_gpu_physical_count_bucket{layer=\"1\",le=\"1\"} 16"), std::string::npos);
}

TEST(PassMeter, WindowsWeighByTokensAndForget) {
  profile::Metrics metrics;
  PassMeter meter({2, 1, 0, "tiny"}, metrics);
  EXPECT_FALSE(meter.average().has_value());
  meter.add({{1, {100, 100}}}, 1);
  EXPECT_TRUE(meter.add({{2, {0, 0}}}, 1).empty());  // an idle pass says nothing
  const std::vector<std::string> lines = meter.add({{3, {2, 0}}}, 1);
  EXPECT_NE(lines[0].find("current_pass_balancedness=0.500 last_10_average_balancedness=0.990"), std::string::npos)
      << lines[0];
  for (uint64_t id = 4; id < 14; ++id) meter.add({{id, {3, 1}}}, 1);
  const std::string last = meter.add({{14, {3, 1}}}, 1)[0];
  EXPECT_NE(last.find("last_10_average_balancedness=0.667 last_100_average_balancedness=0.9"), std::string::npos)
      << last;
  meter.clear();
  EXPECT_FALSE(meter.average().has_value());
}

TEST(PassMeter, APassThatARankHasNotKeptIsLeftOut) {
  profile::Metrics metrics;
  PassMeter meter({2, 1, 0, "tiny"}, metrics);
  EXPECT_TRUE(meter.add({{1, {1, 1}}, {2, {1, 1}}}, 2).empty());
  EXPECT_EQ(meter.add({{2, {1, 1}}, {3, {1, 1}}}, 2).size(), 1u);
  EXPECT_EQ(meter.add({{3, {1, 1}}}, 2).size(), 1u);
}

}  // namespace
}  // namespace tandem::testing
