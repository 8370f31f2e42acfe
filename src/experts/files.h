// Expert loads and placements in files: SGLang's dumps and `--init-expert-location` forms, and our open formats
// (docs/experts.md). Parsing is pure and bounded by the input's size; whatever is wrong is one line that names the
// file. Any thread; values.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"
#include "experts/placement.h"

namespace tandem::experts {

// What the caller's model and server have; zero: whatever the file has.
struct ExpertShape {
  int32_t num_layers = 0, num_logical = 0, num_slots = 0;
};

// The keys of the open formats that describe; empty or zero where a file has none.
struct FileFacts {
  std::string model, phase, planner, planned_from;
  int64_t epoch = 0;
  int32_t num_gpus = 0, num_nodes = 0, num_groups = 0, first_moe_layer = 0;
  double balancedness = 0;
  int64_t window_steps = 0, window_tokens = 0;
  double window_start_unix = 0, window_end_unix = 0;
  bool operator==(const FileFacts&) const = default;
};

struct LoadFile {
  ExpertLoad load;                // summed over steps, ranks and files
  std::vector<ExpertLoad> steps;  // one per forward pass; empty unless asked for
  int64_t num_steps = 1;
  int64_t dropped_passes = 0;  // earlier ones that the recorder's buffer did not keep
  bool scaled = false;         // there were fractions: all counts are multiplied by one power of two, then rounded
  // Of `per_pass` and `per_token` records: whose counts these are, and of which passes, ascending. Else empty: all
  // ranks' counts.
  std::vector<int32_t> ranks;
  std::vector<int64_t> pass_ids;
  FileFacts facts;
};

struct PlacementFile {
  ExpertPlacement placement;  // valid, but for how its slots divide over ranks
  FileFacts facts;
};

struct TrivialLocation {};
using ExpertFile = std::variant<PlacementFile, LoadFile>;
using InitExpertLocation = std::variant<TrivialLocation, PlacementFile, LoadFile>;

enum class StepDetail { kSum, kKeepSteps };

// One file's bytes: `.pt`, JSON or safetensors, told apart by content. A placement has the key physical_to_logical_map,
// a load logical_count ([layers, experts] or [steps, layers, experts], numbers) or a recorder's records.
// name: for messages. Errors: kCorrupt for bytes that are not what they claim to be, kInvalidInput for wrong contents:
// shapes, negative or fractional numbers, an expert without a slot, another model, unknown keys in a placement.
Result<ExpertFile> parse_expert_file(std::span<const uint8_t> bytes, std::string_view name, const ExpertShape& want,
                                     StepDetail detail);

// Also kNotFound: no such file.
Result<ExpertFile> read_expert_file(const std::string& path, const ExpertShape& want, StepDetail detail);

// Dumps of one recording, each path once: counts of several files add up (`per_pass` recorders write one per rank).
// A path may also be JSON text itself. Error if one of them is a placement.
Result<LoadFile> read_load(std::span<const std::string> paths, const ExpertShape& want, StepDetail detail);
Result<PlacementFile> read_placement(const std::string& path, const ExpertShape& want);

// The value of --init-expert-location: `trivial`, a path that ends in .pt, .json or .safetensors, or JSON text. From a
// load the caller plans.
Result<InitExpertLocation> read_init_expert_location(const std::string& value, const ExpertShape& want);

enum class PlacementForm {
  kOpen,    // with provenance, shares and checksum; SGLang refuses the keys it does not know
  kSglang,  // the map alone. Shares are lost.
};

// The open JSON forms, a line per layer; .pt as SGLang's recorder dumps it (one step), or the same keys as the JSON.
std::string format_load_json(const LoadFile& file);
Result<std::string> format_load_torch(const LoadFile& file);
std::string format_placement_json(const PlacementFile& file, PlacementForm form);
Result<std::string> format_placement_torch(const PlacementFile& file, PlacementForm form);

// By the path's ending, .json or .pt. Replaces the file only when it is complete. kInvalidInput: another ending, or a
// path that cannot be written.
Status write_load(const std::string& path, const LoadFile& file);
Status write_placement(const std::string& path, const PlacementFile& file, PlacementForm form);

// Of the map's int32 values in little-endian order, row by row: the open format's crc32.
uint32_t placement_crc32(const ExpertPlacement& placement);

}  // namespace tandem::experts
