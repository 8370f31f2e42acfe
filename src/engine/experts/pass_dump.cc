#include "engine/experts/pass_dump.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "experts/torch_file.h"

namespace tandem::engine {
namespace {

using experts::TorchTensor;
using experts::TorchType;
using experts::TorchValue;

TorchValue tensor_of(std::vector<int64_t> shape, std::span<const int32_t> values) {
  TorchTensor tensor{TorchType::kInt32, std::move(shape), std::vector<uint8_t>(values.size_bytes())};
  if (!values.empty()) std::memcpy(tensor.bytes.data(), values.data(), values.size_bytes());
  return {std::move(tensor)};
}

TorchValue map_of(const PassSizes& sizes, std::span<const int32_t> map) {
  const std::vector<int64_t> wide(map.begin(), map.end());
  return {experts::integer_tensor(TorchType::kInt64, {sizes.num_layers, sizes.num_slots}, wide)};
}

TorchValue list_of(std::span<const int32_t> values) {
  TorchValue::List list;
  list.reserve(values.size());
  for (const int32_t value : values) list.push_back({int64_t(value)});
  return {std::move(list)};
}

TorchValue::Dict dict_of(const PassRecord& record, const PassSizes& sizes, RecorderMode mode, int32_t rank) {
  TorchValue::Dict dict;
  dict.set("forward_pass_id", {int64_t(record.pass_id)});
  dict.set("rank", {int64_t(rank)});
  dict.set("gatherer_key", {std::string("primary")});
  if (mode == RecorderMode::kPerToken) {
    const bool extends = record.kind == PassKind::kExtend;
    dict.set("input_ids", list_of(record.token_ids(sizes)));
    dict.set("positions", list_of(record.positions(sizes)));
    dict.set("extend_seq_lens", extends ? list_of(record.lengths(sizes)) : TorchValue{});
    dict.set("forward_mode", {int64_t(record.kind)});
    dict.set("topk_ids_of_layer", tensor_of({sizes.num_layers, record.num_tokens, sizes.top_k}, record.choices(sizes)));
    dict.set("misc_objects", {TorchValue::List()});
  }
  dict.set("global_physical_count", tensor_of({sizes.num_layers, sizes.num_slots}, record.counts(sizes)));
  return dict;
}

Result<std::string> format_pass_file(RecorderMode mode, std::span<const int32_t> last, int32_t rank,
                                     PassRecording& recording) {
  TorchValue::List records, placements;
  const PassSizes& sizes = recording.sizes;
  // Rows of layers without experts exist in a placement and mean nothing.
  for (auto& [version, map] : recording.maps) {
    for (size_t i = 0; i < map.size(); ++i) map[i] = map[i] < 0 ? last[i] : map[i];
  }
  const auto is_last = [&](uint32_t version) { return std::ranges::equal(recording.maps.at(version), last); };
  for (const auto& [version, map] : recording.maps) {
    if (is_last(version)) continue;
    TorchValue::Dict placement;
    placement.set("version", {int64_t(version)});
    placement.set("physical_to_logical_map", map_of(sizes, map));
    placements.push_back({std::move(placement)});
  }
  for (; !recording.passes.empty(); recording.passes.pop_front()) {
    const PassRecord& record = recording.passes.front();
    TorchValue::Dict dict = dict_of(record, sizes, mode, rank);
    if (!is_last(record.version)) dict.set("placement_version", {int64_t(record.version)});
    records.push_back({std::move(dict)});
  }
  TorchValue::Dict file;
  file.set("records", {std::move(records)});
  file.set("last_physical_to_logical_map", map_of(sizes, last));
  if (!placements.empty()) file.set("placements", {std::move(placements)});
  file.set("dropped_passes", {recording.dropped});
  return experts::format_torch_file({std::move(file)});
}

}  // namespace

Result<std::string> write_dump_file(const std::string& directory, const std::string& name, const std::string& bytes) {
  std::error_code failed;
  std::filesystem::create_directories(directory, failed);
  if (failed) return invalid_input(fmt::format("{}: cannot be created: {}", directory, failed.message()));
  const std::string path = directory + "/" + name;
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), std::streamsize(bytes.size()));
  file.close();
  if (!file) return invalid_input(fmt::format("{}: cannot be written: {}", path, std::strerror(errno)));
  return path;
}

Result<std::vector<std::string>> dump_pass_files(const std::string& directory, double unix_time, RecorderMode mode,
                                                 const experts::ExpertPlacement& last, int32_t first_rank,
                                                 std::span<PassRecording> recordings) {
  std::vector<std::string> paths;
  for (size_t i = 0; i < recordings.size(); ++i) {
    const int32_t rank = first_rank + int32_t(i);
    ASSIGN_OR_RETURN(const std::string bytes, format_pass_file(mode, last.logical_of_slot, rank, recordings[i]));
    const std::string name = fmt::format("expert_distribution_recorder_{:.6f}_{}.pt", unix_time, rank);
    ASSIGN_OR_RETURN(std::string path, write_dump_file(directory, name, bytes));
    paths.push_back(std::move(path));
  }
  return paths;
}

}  // namespace tandem::engine
