// Recordings of several ranks as one file in the form of SGLang's recorder (mode stat). Pure but for the file.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "base/result.h"
#include "engine/expert_port.h"

namespace tandem::engine {

struct DumpFacts {
  int64_t dropped = 0;                 // earlier steps that a rank did not keep
  std::optional<double> balancedness;  // average over the last passes; none: not measured
};

// Writes DIRECTORY/expert_distribution_recorder_<unix time>.pt: logical_count [steps, layers, experts] int32, summed
// over the ranks by step; steps that a rank has not kept any more are left out. Creates the directory. Returns the
// path.
Result<std::string> dump_recording_file(const std::string& directory, double unix_time, int32_t num_layers,
                                        int32_t num_logical, std::span<const ExpertRecording> ranks,
                                        const DumpFacts& facts);

}  // namespace tandem::engine
