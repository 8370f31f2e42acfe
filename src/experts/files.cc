#include "experts/files.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <system_error>

#include "experts/formats/container.h"
#include "experts/formats/facts.h"
#include "experts/formats/load_reader.h"
#include "experts/formats/text.h"
#include "experts/torch/zip.h"

namespace tandem::experts {
namespace {

constexpr double kShareTolerance = 0.01;  // shares written by hand rarely sum to 1 exactly

Result<std::vector<uint8_t>> read_file(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return not_found(fmt::format("{}: no such file", path));
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  std::vector<uint8_t> bytes(in ? size_t(in.tellg()) : 0);
  in.seekg(0);
  in.read(reinterpret_cast<char*>(bytes.data()), std::streamsize(bytes.size()));
  if (!in) return not_found(fmt::format("{}: cannot be read", path));
  return bytes;
}

bool is_path(std::string_view value) {
  return value.ends_with(".pt") || value.ends_with(".json") || value.ends_with(".safetensors");
}

// The whole parts of kShareUnit that are nearest to the shares of one expert and add up to it.
Status round_shares(std::span<const double> shares, std::span<const size_t> slots, std::vector<int32_t>& out) {
  double sum = 0;
  for (size_t slot : slots) {
    if (!(shares[slot] >= 0)) return invalid_input(fmt::format("a share of {}", shares[slot]));
    sum += shares[slot];
  }
  if (!(std::abs(sum - 1) <= kShareTolerance)) return invalid_input(fmt::format("the shares sum to {:.4f}", sum));
  std::vector<std::pair<double, size_t>> remainders;
  int32_t left = kShareUnit;
  for (size_t slot : slots) {
    const double exact = shares[slot] / sum * kShareUnit;
    out[slot] = std::min(left, int32_t(exact));
    left -= out[slot];
    remainders.emplace_back(-(exact - std::floor(exact)), slot);
  }
  std::sort(remainders.begin(), remainders.end());
  for (size_t i = 0; left > 0; i = (i + 1) % remainders.size(), --left) out[remainders[i].second] += 1;
  return Ok{};
}

Status read_shares(const TorchValue& value, ExpertPlacement& placement) {
  ASSIGN_OR_RETURN(const TorchTensor shares, to_tensor(value, "'replica_share'"));
  if (shares.shape != std::vector<int64_t>{placement.num_layers, placement.num_slots}) {
    return invalid_input("'replica_share' has another shape than the map");
  }
  std::vector<double> numbers(shares.num_elements());
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = shares.number_at(i);
  placement.share.assign(numbers.size(), 0);
  for (int32_t layer = 0; layer < placement.num_layers; ++layer) {
    std::vector<std::vector<size_t>> slots_of(size_t(placement.num_logical));
    for (int32_t slot = 0; slot < placement.num_slots; ++slot) {
      slots_of[size_t(placement.layer(layer)[size_t(slot)])].push_back(size_t(layer) * size_t(placement.num_slots) +
                                                                       size_t(slot));
    }
    for (size_t expert = 0; expert < slots_of.size(); ++expert) {
      const Status status = round_shares(numbers, slots_of[expert], placement.share);
      if (!status) {
        return invalid_input(
            fmt::format("'replica_share', layer {}, expert {}: {}", layer, expert, status.error().message));
      }
    }
  }
  return Ok{};
}

Result<TorchTensor> read_map(const TorchValue& value, const ExpertShape& want) {
  ASSIGN_OR_RETURN(TorchTensor map, to_tensor(value, "'physical_to_logical_map'"));
  if (map.shape.size() != 2 || is_floating(map.type) || map.num_elements() == 0) {
    return invalid_input("'physical_to_logical_map' is not a table of whole numbers [layers, slots]");
  }
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (map.shape[0] > kMost || map.shape[1] > kMost) return invalid_input("'physical_to_logical_map' is too large");
  if (want.num_slots != 0 && map.shape[1] != want.num_slots) {
    return invalid_input(
        fmt::format("'physical_to_logical_map' has {} slots per layer; wanted {}", map.shape[1], want.num_slots));
  }
  return map;
}

Status check_crc(const TorchValue::Dict& dict, const ExpertPlacement& placement) {
  const TorchValue* value = dict.find("crc32");
  if (value == nullptr || value->is_none()) return Ok{};
  const auto* stated = value->get_if<int64_t>();
  const uint32_t actual = placement_crc32(placement);
  if (stated != nullptr && *stated == int64_t{actual}) return Ok{};
  return corrupt(fmt::format("the map's crc32 is {}, not the one in the file", actual));
}

Result<PlacementFile> placement_of(const TorchValue::Dict& dict, const ExpertShape& want) {
  if (const std::string key = unknown_placement_key(dict); !key.empty()) {
    return invalid_input(fmt::format("a placement has no key {}", in_quotes(key)));
  }
  ASSIGN_OR_RETURN(const TorchTensor map, read_map(*dict.find("physical_to_logical_map"), want));
  PlacementFile file;
  ExpertPlacement& placement = file.placement;
  placement.num_layers = int32_t(map.shape[0]);
  placement.num_slots = int32_t(map.shape[1]);
  int64_t largest = 0;
  for (size_t i = 0; i < map.num_elements(); ++i) {
    const int64_t expert = map.integer_at(i);
    if (expert < 0 || expert >= placement.num_slots) {
      return invalid_input(fmt::format("layer {}, slot {}: there is no expert {} among {} slots",
                                       int64_t(i) / placement.num_slots, int64_t(i) % placement.num_slots, expert,
                                       placement.num_slots));
    }
    placement.logical_of_slot.push_back(int32_t(expert));
    largest = std::max(largest, expert);
  }
  // With no model to compare to, the file's own number counts, or else the largest expert that has a slot.
  const TorchValue* stated = dict.find("experts");
  const auto* experts = stated == nullptr ? nullptr : stated->get_if<int64_t>();
  placement.num_logical = int32_t(largest + 1);
  if (experts != nullptr) placement.num_logical = int32_t(std::clamp<int64_t>(*experts, 1, placement.num_slots));
  if (want.num_logical != 0 && experts == nullptr) placement.num_logical = want.num_logical;
  const ExpertShape actual{placement.num_layers, placement.num_logical, placement.num_slots};
  RETURN_IF_ERROR(check_same_model(actual, want));
  RETURN_IF_ERROR(validate(placement, {1, 1, placement.num_slots}));
  ASSIGN_OR_RETURN(file.facts, read_facts(dict, "expert-placement", actual));
  RETURN_IF_ERROR(check_crc(dict, placement));
  if (const TorchValue* share = dict.find("replica_share"); share != nullptr && !share->is_none()) {
    RETURN_IF_ERROR(read_shares(*share, placement));
  }
  return file;
}

Result<ExpertFile> interpret(const TorchValue& value, const ExpertShape& want, StepDetail detail) {
  if (value.dict() == nullptr) return invalid_input("is not an object with named tables");
  if (value.dict()->find("physical_to_logical_map") != nullptr) {
    ASSIGN_OR_RETURN(PlacementFile placement, placement_of(*value.dict(), want));
    return ExpertFile{std::move(placement)};
  }
  ASSIGN_OR_RETURN(LoadFile load, read_load_value(*value.dict(), want, detail));
  return ExpertFile{std::move(load)};
}

Result<ExpertFile> read_text_or_file(const std::string& value, const ExpertShape& want, StepDetail detail) {
  const bool inline_json = value.find('{') != std::string::npos && !is_path(value);
  if (!inline_json) return read_expert_file(value, want, detail);
  return parse_expert_file({reinterpret_cast<const uint8_t*>(value.data()), value.size()}, "inline JSON", want, detail);
}

}  // namespace

Result<ExpertFile> parse_expert_file(std::span<const uint8_t> bytes, std::string_view name, const ExpertShape& want,
                                     StepDetail detail) {
  ASSIGN_OR_RETURN(const TorchValue value, parse_container(bytes, name));
  Result<ExpertFile> file = interpret(value, want, detail);
  if (!file) return Error{file.error().code, fmt::format("{}: {}", name, file.error().message)};
  return file;
}

Result<ExpertFile> read_expert_file(const std::string& path, const ExpertShape& want, StepDetail detail) {
  ASSIGN_OR_RETURN(const std::vector<uint8_t> bytes, read_file(path));
  return parse_expert_file(bytes, path, want, detail);
}

Result<LoadFile> read_load(std::span<const std::string> paths, const ExpertShape& want, StepDetail detail) {
  if (paths.empty()) return invalid_input("no load file is named");
  std::optional<LoadFile> sum;
  for (const std::string& path : paths) {
    ASSIGN_OR_RETURN(ExpertFile file, read_text_or_file(path, want, detail));
    LoadFile* load = std::get_if<LoadFile>(&file);
    if (load == nullptr) return invalid_input(fmt::format("{}: is a placement, not a load", path));
    if (!sum) {
      sum = std::move(*load);
    } else if (const Status status = merge_loads(*load, *sum); !status) {
      return Error{status.error().code, fmt::format("{}: {}", path, status.error().message)};
    }
  }
  return std::move(*sum);
}

Result<PlacementFile> read_placement(const std::string& path, const ExpertShape& want) {
  ASSIGN_OR_RETURN(ExpertFile file, read_text_or_file(path, want, StepDetail::kSum));
  PlacementFile* placement = std::get_if<PlacementFile>(&file);
  if (placement == nullptr) return invalid_input(fmt::format("{}: is a load, not a placement", path));
  return std::move(*placement);
}

Result<InitExpertLocation> read_init_expert_location(const std::string& value, const ExpertShape& want) {
  if (value == "trivial") return InitExpertLocation{TrivialLocation{}};
  const std::span<const uint8_t> text{reinterpret_cast<const uint8_t*>(value.data()), value.size()};
  ASSIGN_OR_RETURN(ExpertFile file, is_path(value) ? read_expert_file(value, want, StepDetail::kSum)
                                                   : parse_expert_file(text, "inline JSON", want, StepDetail::kSum));
  return std::visit([](auto&& one) { return InitExpertLocation{std::move(one)}; }, std::move(file));
}

uint32_t placement_crc32(const ExpertPlacement& placement) {
  std::vector<uint8_t> bytes;
  bytes.reserve(placement.logical_of_slot.size() * 4);
  for (int32_t expert : placement.logical_of_slot) {
    for (int shift : {0, 8, 16, 24}) bytes.push_back(uint8_t(expert >> shift));
  }
  return crc32_of(bytes);
}

}  // namespace tandem::experts
