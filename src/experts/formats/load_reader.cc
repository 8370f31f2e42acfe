#include "experts/formats/load_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <utility>

#include "experts/formats/container.h"
#include "experts/formats/facts.h"

namespace tandem::experts {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 53;  // of one expert; a double is exact up to here
constexpr int kScaledBits = 32;                    // fractions are scaled so that the largest has about this many bits

// Fractions keep their proportions: all numbers of the file are multiplied by one power of two. 1: whole numbers.
Result<double> scale_of(const TorchTensor& counts) {
  double largest = 0;
  bool fractions = false;
  for (size_t i = 0; i < counts.num_elements(); ++i) {
    const double count = counts.number_at(i);
    if (!(count >= 0) || count > double(kMostTokens)) {
      return invalid_input(fmt::format("'logical_count' holds {} at entry {}", count, i));
    }
    largest = std::max(largest, count);
    fractions |= count != std::floor(count);
  }
  return fractions && largest < 0x1p32 ? std::ldexp(1.0, kScaledBits - std::max(-900, std::ilogb(largest))) : 1.0;
}

Status add(int64_t tokens, int64_t& total) {
  if (tokens > kMostTokens - total) return invalid_input("the counts of one expert add up to more than 2^53");
  total += tokens;
  return Ok{};
}

Status check_dimension(int64_t size, const char* what) {
  if (size > 0 && size <= std::numeric_limits<int32_t>::max()) return Ok{};
  return invalid_input(fmt::format("a table of {} {}", size, what));
}

Result<LoadFile> from_logical_count(const TorchValue& value, const ExpertShape& want, StepDetail detail) {
  ASSIGN_OR_RETURN(const TorchTensor counts, to_tensor(value, "'logical_count'"));
  const size_t rank = counts.shape.size();
  if (rank != 2 && rank != 3) {
    return invalid_input(
        fmt::format("'logical_count' has {} dimensions; wanted [layers, experts] or [steps, layers, experts]", rank));
  }
  const int64_t num_steps = rank == 3 ? counts.shape[0] : 1;
  RETURN_IF_ERROR(check_dimension(num_steps, "steps"));
  RETURN_IF_ERROR(check_dimension(counts.shape[rank - 2], "layers"));
  RETURN_IF_ERROR(check_dimension(counts.shape[rank - 1], "experts"));
  LoadFile file;
  file.num_steps = num_steps;
  file.load = {int32_t(counts.shape[rank - 2]), int32_t(counts.shape[rank - 1]), {}};
  RETURN_IF_ERROR(check_same_model({file.load.num_layers, file.load.num_logical, 0}, want));
  ASSIGN_OR_RETURN(const double scale, scale_of(counts));
  file.scaled = scale != 1.0;
  const size_t cells = counts.num_elements() / size_t(num_steps);
  file.load.tokens.assign(cells, 0);
  for (size_t step = 0; step < size_t(num_steps); ++step) {
    ExpertLoad one{file.load.num_layers, file.load.num_logical, {}};
    for (size_t i = 0; i < cells; ++i) {
      const size_t at = step * cells + i;
      const int64_t tokens =
          is_floating(counts.type) ? std::llround(counts.number_at(at) * scale) : counts.integer_at(at);
      RETURN_IF_ERROR(add(tokens, file.load.tokens[i]));
      if (detail == StepDetail::kKeepSteps) one.tokens.push_back(tokens);
    }
    if (detail == StepDetail::kKeepSteps) file.steps.push_back(std::move(one));
  }
  return file;
}

int64_t integer_of(const TorchValue::Dict& dict, std::string_view key, int64_t otherwise) {
  const TorchValue* value = dict.find(key);
  const auto* integer = value == nullptr ? nullptr : value->get_if<int64_t>();
  return integer == nullptr ? otherwise : *integer;
}

// One forward pass as a rank recorded it: counts per slot, folded back to logical experts.
struct RecordReader {
  TorchTensor last_map;                   // [layers, slots]
  std::map<int64_t, TorchTensor> map_of;  // by version: placements under which some passes ran; like last_map
  ExpertLoad zero;

  Result<const TorchTensor*> map_for(const TorchValue::Dict& record) const {
    if (record.find("placement_version") == nullptr) return &last_map;
    const int64_t version = integer_of(record, "placement_version", -1);
    const auto found = map_of.find(version);
    if (found == map_of.end()) return invalid_input(fmt::format("'placement_version' {} is not there", version));
    return &found->second;
  }

  Result<ExpertLoad> read(const TorchValue::Dict& record) const {
    ASSIGN_OR_RETURN(const TorchTensor* map, map_for(record));
    const TorchTensor& slot_map = *map;
    const TorchValue* value = record.find("global_physical_count");
    if (value == nullptr) return invalid_input("no 'global_physical_count'");
    ASSIGN_OR_RETURN(const TorchTensor counts, to_tensor(*value, "'global_physical_count'"));
    if (counts.shape != slot_map.shape || is_floating(counts.type)) {
      return invalid_input("'global_physical_count' is not a table of whole numbers as large as the map");
    }
    ExpertLoad load = zero;
    const auto num_slots = size_t(slot_map.shape[1]);
    for (size_t i = 0; i < counts.num_elements(); ++i) {
      const int64_t tokens = counts.integer_at(i);
      if (tokens < 0) return invalid_input(fmt::format("'global_physical_count' holds {}", tokens));
      RETURN_IF_ERROR(
          add(tokens, load.tokens[i / num_slots * size_t(load.num_logical) + size_t(slot_map.integer_at(i))]));
    }
    return load;
  }
};

// Placements that the records name beside the last one.
Status read_earlier_maps(const TorchValue::Dict& dict, RecordReader& reader) {
  const TorchValue* value = dict.find("placements");
  if (value == nullptr) return Ok{};
  const auto* placements = value->get_if<TorchValue::List>();
  if (placements == nullptr) return invalid_input("'placements' is not a list");
  for (const TorchValue& item : *placements) {
    const TorchValue::Dict* placement = item.dict();
    const TorchValue* map = placement == nullptr ? nullptr : placement->find("physical_to_logical_map");
    if (map == nullptr) return invalid_input("'placements' holds one without 'physical_to_logical_map'");
    ASSIGN_OR_RETURN(TorchTensor slots, to_tensor(*map, "'physical_to_logical_map'"));
    if (slots.shape != reader.last_map.shape || is_floating(slots.type)) {
      return invalid_input("'placements' holds a map that is not as large as the last one");
    }
    for (size_t i = 0; i < slots.num_elements(); ++i) {
      const int64_t expert = slots.integer_at(i);
      if (expert < 0 || expert >= reader.zero.num_logical) {
        return invalid_input(fmt::format("'placements' names expert {}", expert));
      }
    }
    reader.map_of.insert_or_assign(integer_of(*placement, "version", -1), std::move(slots));
  }
  return Ok{};
}

Result<RecordReader> open_records(const TorchValue::Dict& dict, const ExpertShape& want) {
  const TorchValue* map = dict.find("last_physical_to_logical_map");
  if (map == nullptr) return invalid_input("has 'records' but no 'last_physical_to_logical_map'");
  ASSIGN_OR_RETURN(TorchTensor slots, to_tensor(*map, "'last_physical_to_logical_map'"));
  if (slots.shape.size() != 2 || is_floating(slots.type)) {
    return invalid_input("'last_physical_to_logical_map' is not a table of whole numbers [layers, slots]");
  }
  RETURN_IF_ERROR(check_dimension(slots.shape[0], "layers"));
  RETURN_IF_ERROR(check_dimension(slots.shape[1], "slots"));
  int64_t num_logical = want.num_logical;
  for (size_t i = 0; i < slots.num_elements(); ++i) {
    const int64_t expert = slots.integer_at(i);
    // With no model to compare to, the largest expert that has a slot tells how many there are.
    if (want.num_logical == 0) num_logical = std::max(num_logical, expert + 1);
    if (expert < 0 || expert >= num_logical || expert >= slots.shape[1]) {
      return invalid_input(fmt::format("'last_physical_to_logical_map' names expert {}", expert));
    }
  }
  ExpertLoad zero{int32_t(slots.shape[0]), int32_t(num_logical), {}};
  RETURN_IF_ERROR(check_same_model({zero.num_layers, zero.num_logical, 0}, want));
  zero.tokens.assign(size_t(zero.num_layers) * size_t(zero.num_logical), 0);
  RecordReader reader{std::move(slots), {}, std::move(zero)};
  RETURN_IF_ERROR(read_earlier_maps(dict, reader));
  return reader;
}

Status add_load(const ExpertLoad& from, ExpertLoad& into) {
  for (size_t i = 0; i < from.tokens.size(); ++i) RETURN_IF_ERROR(add(from.tokens[i], into.tokens[i]));
  return Ok{};
}

using Passes = std::map<int64_t, ExpertLoad>;  // by id; empty loads unless the steps are wanted

void set_passes(Passes passes, StepDetail detail, LoadFile& file) {
  file.num_steps = int64_t(passes.size());
  file.pass_ids.clear();
  file.steps.clear();
  for (auto& [id, load] : passes) {
    file.pass_ids.push_back(id);
    if (detail == StepDetail::kKeepSteps) file.steps.push_back(std::move(load));
  }
}

Result<LoadFile> from_records(const TorchValue& value, const TorchValue::Dict& dict, const ExpertShape& want,
                              StepDetail detail) {
  const auto* records = value.get_if<TorchValue::List>();
  if (records == nullptr || records->empty()) return invalid_input("'records' is not a list of forward passes");
  ASSIGN_OR_RETURN(const RecordReader reader, open_records(dict, want));
  LoadFile file;
  file.load = reader.zero;
  Passes passes;
  std::set<int32_t> ranks;
  for (size_t i = 0; i < records->size(); ++i) {
    const TorchValue::Dict* record = (*records)[i].dict();
    Result<ExpertLoad> load = record != nullptr ? reader.read(*record) : Result<ExpertLoad>(invalid_input("no dict"));
    if (!load) return invalid_input(fmt::format("record {}: {}", i, load.error().message));
    RETURN_IF_ERROR(add_load(*load, file.load));
    const int64_t rank = integer_of(*record, "rank", 0);
    if (rank < 0 || rank > std::numeric_limits<int32_t>::max()) return invalid_input(fmt::format("rank {}", rank));
    ranks.insert(int32_t(rank));
    const auto [step, is_new] = passes.try_emplace(integer_of(*record, "forward_pass_id", int64_t(i)));
    if (detail == StepDetail::kSum) continue;
    if (is_new) step->second = reader.zero;
    RETURN_IF_ERROR(add_load(*load, step->second));
  }
  file.ranks.assign(ranks.begin(), ranks.end());
  set_passes(std::move(passes), detail, file);
  return file;
}

// Ranks of one recording saw the same passes.
Status merge_passes(const LoadFile& from, LoadFile& into) {
  for (int32_t rank : from.ranks) {
    if (std::find(into.ranks.begin(), into.ranks.end(), rank) != into.ranks.end()) {
      return invalid_input(fmt::format("the records of rank {} are in another file, too", rank));
    }
  }
  into.ranks.insert(into.ranks.end(), from.ranks.begin(), from.ranks.end());
  const StepDetail detail = into.steps.empty() ? StepDetail::kSum : StepDetail::kKeepSteps;
  Passes passes;
  for (const LoadFile* file : {&std::as_const(into), &from}) {
    for (size_t i = 0; i < file->pass_ids.size(); ++i) {
      const auto [step, is_new] = passes.try_emplace(file->pass_ids[i]);
      if (detail == StepDetail::kSum) continue;
      if (is_new) {
        step->second = file->steps[i];
      } else {
        RETURN_IF_ERROR(add_load(file->steps[i], step->second));
      }
    }
  }
  set_passes(std::move(passes), detail, into);
  return Ok{};
}

}  // namespace

Result<LoadFile> read_load_value(const TorchValue::Dict& dict, const ExpertShape& want, StepDetail detail) {
  const TorchValue* counts = dict.find("logical_count");
  const TorchValue* records = dict.find("records");
  if (counts == nullptr && records == nullptr) {
    return invalid_input("has none of the keys 'physical_to_logical_map', 'logical_count' and 'records'");
  }
  ASSIGN_OR_RETURN(LoadFile file, counts != nullptr ? from_logical_count(*counts, want, detail)
                                                    : from_records(*records, dict, want, detail));
  file.dropped_passes = std::max<int64_t>(0, integer_of(dict, "dropped_passes", 0));
  ASSIGN_OR_RETURN(file.facts, read_facts(dict, "expert-load", {file.load.num_layers, file.load.num_logical, 0}));
  return file;
}

Status merge_loads(const LoadFile& from, LoadFile& into) {
  if (from.load.num_layers != into.load.num_layers || from.load.num_logical != into.load.num_logical) {
    return invalid_input(fmt::format("{} layers of {} experts, the files before it have {} layers of {}",
                                     from.load.num_layers, from.load.num_logical, into.load.num_layers,
                                     into.load.num_logical));
  }
  if (from.scaled || into.scaled) return invalid_input("fractional counts of several files do not add up");
  RETURN_IF_ERROR(add_load(from.load, into.load));
  into.dropped_passes = std::max(into.dropped_passes, from.dropped_passes);
  if (from.ranks.empty() != into.ranks.empty()) {
    return invalid_input(
        "holds the records of single ranks, the files before it the sum of all, or the other way round");
  }
  if (!from.ranks.empty()) return merge_passes(from, into);
  into.steps.insert(into.steps.end(), from.steps.begin(), from.steps.end());
  into.num_steps += from.num_steps;
  return Ok{};
}

}  // namespace tandem::experts
