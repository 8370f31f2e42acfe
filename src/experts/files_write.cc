#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <system_error>

#include "experts/files.h"
#include "experts/formats/container.h"
#include "experts/formats/facts.h"
#include "experts/torch_file.h"

namespace tandem::experts {
namespace {

TorchValue::Dict placement_value(const PlacementFile& file, PlacementForm form) {
  const ExpertPlacement& placement = file.placement;
  const std::vector<int64_t> shape{placement.num_layers, placement.num_slots};
  const std::vector<int64_t> map(placement.logical_of_slot.begin(), placement.logical_of_slot.end());
  TorchValue::Dict dict;
  if (form == PlacementForm::kOpen) {
    add_facts(file.facts, "expert-placement", {placement.num_layers, placement.num_logical, placement.num_slots}, dict);
    dict.set("crc32", {int64_t{placement_crc32(placement)}});
  }
  dict.set("physical_to_logical_map", {integer_tensor(TorchType::kInt64, shape, map)});
  if (form == PlacementForm::kSglang || placement.share.empty()) return dict;
  std::vector<double> shares;
  for (int32_t share : placement.share) shares.push_back(double(share) / kShareUnit);
  dict.set("replica_share", {number_tensor(shape, shares)});
  return dict;
}

// PyTorch before 2.0 does not allow a float in a pickle to its restricted loader, but a tensor without dimensions.
void wrap_floats(TorchValue::Dict& dict) {
  for (TorchValue& value : dict.values) {
    if (const auto* number = value.get_if<double>()) value = {number_tensor({}, std::span(number, 1))};
    if (auto* inner = std::get_if<TorchValue::Dict>(&value.data)) wrap_floats(*inner);
  }
}

// A reader never sees half a file: a new one is written beside it and takes its name.
Status write_file(const std::string& path, const std::string& bytes) {
  const std::string partial = path + ".partial";
  std::ofstream out(partial, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), std::streamsize(bytes.size()));
  out.close();
  std::error_code error;
  if (out) std::filesystem::rename(partial, path, error);
  if (out && !error) return Ok{};
  std::error_code ignored;
  std::filesystem::remove(partial, ignored);
  return invalid_input(fmt::format("{}: cannot be written", path));
}

Status write_by_ending(const std::string& path, const Result<std::string>& json, const Result<std::string>& torch) {
  if (!path.ends_with(".json") && !path.ends_with(".pt")) {
    return invalid_input(fmt::format("{}: should end in .json or .pt", path));
  }
  const Result<std::string>& bytes = path.ends_with(".pt") ? torch : json;
  if (!bytes) return Error{bytes.error().code, fmt::format("{}: {}", path, bytes.error().message)};
  return write_file(path, *bytes);
}

}  // namespace

std::string format_load_json(const LoadFile& file) {
  TorchValue::Dict dict;
  add_facts(file.facts, "expert-load", {file.load.num_layers, file.load.num_logical, 0}, dict);
  dict.set("logical_count",
           {integer_tensor(TorchType::kInt64, {file.load.num_layers, file.load.num_logical}, file.load.tokens)});
  return format_json_value(dict);
}

Result<std::string> format_load_torch(const LoadFile& file) {
  const std::vector<int64_t>& tokens = file.load.tokens;
  // The recorder's type where the counts fit.
  const bool small =
      std::all_of(tokens.begin(), tokens.end(), [](int64_t t) { return t <= std::numeric_limits<int32_t>::max(); });
  TorchValue::Dict dict;
  dict.set("rank", {int64_t{0}});
  dict.set("logical_count", {integer_tensor(small ? TorchType::kInt32 : TorchType::kInt64,
                                            {1, file.load.num_layers, file.load.num_logical}, tokens)});
  dict.set("average_utilization_rate_over_window", {});
  return format_torch_file({std::move(dict)});
}

std::string format_placement_json(const PlacementFile& file, PlacementForm form) {
  return format_json_value(placement_value(file, form));
}

Result<std::string> format_placement_torch(const PlacementFile& file, PlacementForm form) {
  TorchValue::Dict dict = placement_value(file, form);
  wrap_floats(dict);
  return format_torch_file({std::move(dict)});
}

Status write_load(const std::string& path, const LoadFile& file) {
  return write_by_ending(path, format_load_json(file), format_load_torch(file));
}

Status write_placement(const std::string& path, const PlacementFile& file, PlacementForm form) {
  return write_by_ending(path, format_placement_json(file, form), format_placement_torch(file, form));
}

}  // namespace tandem::experts
