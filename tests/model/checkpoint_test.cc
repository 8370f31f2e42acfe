// Damaged and odd checkpoints: each fault is one line that names the file.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>

#include "model/checkpoint/checkpoint.h"
#include "model/model.h"
#include "tests/model/model_runner.h"

namespace tandem::model::testing {
namespace {

namespace fs = std::filesystem;

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

void write_file(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

// A copy of a golden checkpoint (single file) or of the trained model (two shards) to be damaged.
class ScratchCheckpoint {
 public:
  explicit ScratchCheckpoint(const std::string& source) {
    std::string pattern = (fs::temp_directory_path() / "tandem-checkpoint-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
    for (const auto& entry : fs::directory_iterator(source)) fs::copy(entry.path(), path_ / entry.path().filename());
    fs::permissions(path_, fs::perms::owner_all);
  }
  ~ScratchCheckpoint() { fs::remove_all(path_); }
  std::string path() const { return path_.string(); }
  fs::path operator/(const std::string& name) const { return path_ / name; }

  // Splits the file into header and data, lets `change` edit them, and writes them back with the right length.
  void edit(const std::string& name, const std::function<void(std::string& header, std::string& data)>& change) {
    const std::string bytes = read_file(path_ / name);
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), 8);
    std::string header = bytes.substr(8, length), data = bytes.substr(8 + length);
    change(header, data);
    length = header.size();
    std::string out(8, '\0');
    std::memcpy(out.data(), &length, 8);
    write_file(path_ / name, out + header + data);
  }

  // The error that loading gives; "" if it loads.
  std::string fault(const std::string& overrides = "") const {
    RunnerOptions options;
    options.directory = path_.string();
    options.backend = kernels::Backend::kRef;
    options.num_threads = 1;
    options.max_context = options.max_tokens = 64;
    LoadOptions load = load_options(options);
    load.config_overrides = overrides;
    const auto model = load_model(load);
    return model ? "" : model.error().message;
  }

 private:
  fs::path path_;
};

void replace(std::string& text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
}

using Change = std::function<void(std::string& header, std::string& data)>;

struct Damage {
  const char* message;
  Change change;
};

TEST(Checkpoint, EachDamagedHeaderIsOneLineThatNamesTheFault) {
  const auto swap = [](const char* from, const char* to) -> Change {
    return [from, to](std::string& header, std::string&) { replace(header, from, to); };
  };
  const Damage cases[] = {
      {"header: not valid JSON", [](std::string& header, std::string&) { header[0] = '?'; }},
      {"header is not a JSON object", [](std::string& header, std::string&) { header = "[1, 2]"; }},
      {"has unknown dtype 'F17'", swap("\"BF16\"", "\"F17\"")},
      {"has dtype F16, wanted", swap("\"BF16\"", "\"F16\"")},
      {"has no dtype", swap("\"dtype\"", "\"dtyqe\"")},
      {"has no shape", swap("\"shape\"", "\"shade\"")},
      {"has a bad shape", swap("\"shape\":[", "\"shape\":[-")},
      {"has a bad shape", swap("\"shape\":[", "\"shape\":[4294967296,4294967296,")},
      {"bytes, but BF16 [1", swap("\"shape\":[", "\"shape\":[1")},
      {"has bad data_offsets", swap("\"data_offsets\":[", "\"data_offsets\":[9,")},
      {"has shape [64, 96], config.json wants [96, 64]", swap("[96,64]", "[64,96]")},
      {"'lm_heal.weight'", swap("lm_head.weight", "lm_heal.weight")},
      {"beyond the file's", [](std::string&, std::string& data) { data.resize(data.size() / 2); }},
      {"10 bytes after the last tensor belong to none", [](std::string&, std::string& data) { data += "0123456789"; }},
  };
  for (const Damage& damage : cases) {
    ScratchCheckpoint checkpoint(data_path("golden/v2_groups"));
    checkpoint.edit("model.safetensors", damage.change);
    const std::string fault = checkpoint.fault();
    const bool is_missing = std::string(damage.message) == "'lm_heal.weight'";
    EXPECT_NE(fault.find(is_missing ? "tensor 'lm_head.weight' is missing" : damage.message), std::string::npos)
        << damage.message << " gave: " << fault;
    EXPECT_NE(fault.find(checkpoint.path()), std::string::npos) << fault;
    EXPECT_EQ(fault.find('\n'), std::string::npos) << fault;
  }
}

TEST(Checkpoint, OverlapsGapsAndTwinsAreFound) {
  const auto header_of = [](const std::string& entries, const std::string& data) {
    std::string out(8, '\0');
    const uint64_t length = entries.size();
    std::memcpy(out.data(), &length, 8);
    return out + entries + data;
  };
  const auto fault = [&](const std::string& entries, size_t data_bytes) {
    const std::string file = header_of(entries, std::string(data_bytes, 'x'));
    const auto parsed =
        parse_safetensors_header({reinterpret_cast<const uint8_t*>(file.data()), file.size()}, file.size(), "FILE");
    return parsed ? std::string() : parsed.error().message;
  };
  const auto tensor = [](const char* name, int begin, int end) {
    return "\"" + std::string(name) + "\":{\"dtype\":\"U8\",\"shape\":[" + std::to_string(end - begin) +
           "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
  };
  EXPECT_EQ(fault("{" + tensor("b", 4, 8) + "," + tensor("a", 0, 4) + "}", 8), "");
  EXPECT_EQ(fault("{\"__metadata__\":{\"format\":\"pt\"}," + tensor("a", 0, 4) + "," + tensor("e", 4, 4) + "}", 4), "");
  EXPECT_NE(fault("{" + tensor("a", 0, 4) + "," + tensor("b", 3, 8) + "}", 8).find("inside the one"),
            std::string::npos);
  EXPECT_NE(fault("{" + tensor("a", 0, 4) + "," + tensor("b", 5, 8) + "}", 8).find("after a gap"), std::string::npos);
  EXPECT_NE(fault("{" + tensor("a", 0, 4) + "," + tensor("a", 4, 8) + "}", 8).find("appears twice"), std::string::npos);
  EXPECT_NE(fault("{" + tensor("a", 0, 9) + "}", 8).find("beyond the file's"), std::string::npos);
  EXPECT_NE(fault("{}", 8).find("belong to none"), std::string::npos);
  const uint8_t few[3] = {1, 2, 3};
  EXPECT_FALSE(parse_safetensors_header(few, 3, "FILE"));
}

TEST(Checkpoint, TruncatedAnywhereIsRefusedWithTheFilesName) {
  ScratchCheckpoint checkpoint(data_path("golden/v2_lite"));
  const std::string bytes = read_file(checkpoint / "model.safetensors");
  for (const size_t keep : {size_t(0), size_t(7), size_t(8), size_t(500), bytes.size() / 2, bytes.size() - 1}) {
    write_file(checkpoint / "model.safetensors", bytes.substr(0, keep));
    const std::string fault = checkpoint.fault();
    EXPECT_NE(fault.find("model.safetensors"), std::string::npos) << keep << " gave: " << fault;
    EXPECT_EQ(fault.find('\n'), std::string::npos);
  }
  fs::remove(checkpoint / "model.safetensors");
  EXPECT_NE(checkpoint.fault().find("model.safetensors: cannot open: No such file"), std::string::npos);
  fs::remove(checkpoint / "config.json");
  EXPECT_NE(checkpoint.fault().find("config.json: cannot open"), std::string::npos);
}

TEST(Checkpoint, ABitFlippedInTheHeaderNeverCrashes) {
  const std::string bytes = read_file(data_path("golden/v3_yarn/model.safetensors"));
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  int refused = 0;
  for (size_t at = 0; at < 8 + length; at += 5) {
    std::string damaged = bytes;
    damaged[at] = char(damaged[at] ^ (1 << (at % 7)));
    const auto parsed = parse_safetensors_header({reinterpret_cast<const uint8_t*>(damaged.data()), damaged.size()},
                                                 damaged.size(), "FILE");
    refused += !parsed;
  }
  EXPECT_GT(refused, int(length / 5 / 3));  // the rest are changed names, found missing later
}

TEST(Checkpoint, TheIndexMustTellTheTruth) {
  const std::string index = "model.safetensors.index.json";
  const auto fault_after = [&](const std::string& from, const std::string& to) {
    ScratchCheckpoint checkpoint(tiny_directory());
    std::string text = read_file(checkpoint / index);
    replace(text, from, to);
    write_file(checkpoint / index, text);
    return checkpoint.fault();
  };
  EXPECT_NE(
      fault_after("model-00001-of-00002", "model-00003-of-00002").find("model-00003-of-00002.safetensors: cannot open"),
      std::string::npos);
  EXPECT_NE(fault_after("\"model.norm.weight\"", "\"model.worm.weight\"").find("no tensor 'model.worm.weight'"),
            std::string::npos);
  EXPECT_NE(fault_after("model-00001-of-00002", "../model-00001-of-00002").find("is not the name of a file beside it"),
            std::string::npos);
  EXPECT_NE(fault_after("\"weight_map\"", "\"height_map\"").find("has no weight_map object"), std::string::npos);
  EXPECT_NE(fault_after("{", "[").find("not valid JSON"), std::string::npos);

  ScratchCheckpoint twins(tiny_directory());
  fs::copy_file(twins / "model-00001-of-00002.safetensors", twins / "model-00002-of-00002.safetensors",
                fs::copy_options::overwrite_existing);
  EXPECT_NE(twins.fault().find("is also in"), std::string::npos);
}

TEST(Checkpoint, Fp8NeedsItsScalesAndItsConfig) {
  const std::string shard = "model-00001-of-00002.safetensors", index = "model.safetensors.index.json";
  const std::string name = "model.layers.0.mlp.down_proj.weight_scale_inv";
  const auto rename = [&](ScratchCheckpoint& checkpoint) {
    checkpoint.edit(shard, [&](std::string& header, std::string&) { replace(header, name, name + "x"); });
    std::string text = read_file(checkpoint / index);
    replace(text, name, name + "x");
    write_file(checkpoint / index, text);
  };
  ScratchCheckpoint missing(tiny_directory());
  rename(missing);
  EXPECT_NE(missing.fault().find("tensor '" + name + "' is missing"), std::string::npos) << missing.fault();

  ScratchCheckpoint shape(tiny_directory());
  shape.edit(shard, [](std::string& header, std::string&) { replace(header, "[2,8]", "[8,2]"); });
  EXPECT_NE(shape.fault().find("has shape [8, 2], wanted [2, 8] for 128x128 blocks"), std::string::npos);

  ScratchCheckpoint infinite(tiny_directory());
  infinite.edit(shard, [](std::string&, std::string& data) { std::memcpy(data.data(), "\0\0\x80\x7f", 4); });
  EXPECT_NE(infinite.fault().find("not finite"), std::string::npos);

  ScratchCheckpoint config(tiny_directory());
  EXPECT_NE(config.fault(R"({"quantization_config": null})").find("is F8_E4M3, but config.json has no fp8"),
            std::string::npos);
  EXPECT_EQ(config.fault(), "");
}

TEST(Checkpoint, SeveralMissingTensorsAreCounted) {
  ScratchCheckpoint checkpoint(data_path("golden/v2_lite"));
  EXPECT_NE(checkpoint.fault(R"({"num_hidden_layers": 4})")
                .find("'model.layers.3.input_layernorm.weight' is missing (and 34 more tensors)"),
            std::string::npos)
      << checkpoint.fault(R"({"num_hidden_layers": 4})");
}

TEST(Checkpoint, UnalignedTensorsLoadAllTheSame) {
  ScratchCheckpoint checkpoint(data_path("golden/v3_moonlight_tied"));
  const std::string before = read_file(checkpoint / "model.safetensors");
  RunnerOptions options;
  options.directory = checkpoint.path();
  options.max_context = options.max_tokens = 64;
  const std::vector<int32_t> ids{5, 6, 7, 8, 9};
  const auto logits = [&] {
    const auto model = must_load(options);
    Runner runner(*model, options);
    return runner.prefill(runner.add_sequence(16), ids, 0);
  };
  const std::vector<float> aligned = logits();
  // One blank more in the header: every tensor now begins at an odd byte.
  checkpoint.edit("model.safetensors", [](std::string& header, std::string&) { header += ' '; });
  EXPECT_EQ(logits(), aligned);
}

TEST(Checkpoint, CutLayersRunAndAreNamedApartFromTheUnknown) {
  const auto shown = describe_checkpoint(tiny_directory(), R"({"num_hidden_layers": 4})");
  ASSERT_TRUE(shown) << shown.error().message;
  EXPECT_NE(shown->find("next-token module             218"), std::string::npos) << *shown;
  EXPECT_NE(shown->find("cut layers"), std::string::npos) << *shown;
  EXPECT_EQ(shown->find("unknown"), std::string::npos) << *shown;
  ScratchCheckpoint checkpoint(data_path("golden/v2_lite"));
  EXPECT_EQ(checkpoint.fault(R"({"num_hidden_layers": 2})"), "");
}

TEST(DescribeCheckpoint, CountsWhatTheModelCardSays) {
  const auto shown = describe_checkpoint(tiny_directory(), "");
  ASSERT_TRUE(shown) << shown.error().message;
  // models/tiny/README.md: 22.8 M in the model proper, 7.9 M used per token, 3.6 M in the module behind it.
  for (const char* part :
       {"22.77 M", "7.89 M", "3.64 M", "DeepseekV3ForCausalLM", "2 shards", "4 groups", "routed experts"}) {
    EXPECT_NE(shown->find(part), std::string::npos) << part << "\n" << *shown;
  }
  const auto r1 = describe_checkpoint(data_path("configs/deepseek-r1"), "");
  ASSERT_TRUE(r1) << r1.error().message;
  EXPECT_NE(r1->find("671.03 G"), std::string::npos) << *r1;  // DeepSeek's paper: 671 B
  EXPECT_NE(r1->find("no safetensors here"), std::string::npos);
  EXPECT_FALSE(describe_checkpoint("/nowhere", ""));
}

}  // namespace
}  // namespace tandem::model::testing
