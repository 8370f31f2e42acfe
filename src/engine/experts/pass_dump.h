// Recordings of single passes as SGLang's recorder writes them (modes per_pass, per_token): a file per rank.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/experts/pass_recorder.h"
#include "experts/placement.h"

namespace tandem::engine {

// Writes DIRECTORY/expert_distribution_recorder_<unix time>_<rank>.pt for each rank, first_rank being that of
// recordings[0]; creates the directory. Keys: records, last_physical_to_logical_map; and of ours dropped_passes and,
// where passes ran under another placement than `last`, placements, which such a record names by placement_version.
// Recordings are used up on the way, so that the memory of a pass is not held twice. Returns the paths.
Result<std::vector<std::string>> dump_pass_files(const std::string& directory, double unix_time, RecorderMode mode,
                                                 const experts::ExpertPlacement& last, int32_t first_rank,
                                                 std::span<PassRecording> recordings);

// Creates the directory and writes DIRECTORY/NAME.
Result<std::string> write_dump_file(const std::string& directory, const std::string& name, const std::string& bytes);

}  // namespace tandem::engine
