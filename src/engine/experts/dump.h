// Recordings of several ranks as one file in the form of SGLang's recorder (mode stat). Pure but for the file.
#pragma once

#include <span>
#include <string>

#include "base/result.h"
#include "engine/expert_port.h"

namespace tandem::engine {

// Memory of a recording without a bound of its own, of one rank.
inline constexpr int64_t kRecordingCeilingBytes = int64_t(512) << 20;

// Writes DIRECTORY/expert_distribution_recorder_<unix time>.pt: logical_count [steps, layers, experts] int32, summed
// over the ranks by step; steps that a rank has not kept any more are left out. Creates the directory. Returns the
// path.
Result<std::string> dump_recording_file(const std::string& directory, double unix_time, int32_t num_layers,
                                        int32_t num_logical, std::span<const ExpertRecording> ranks);

}  // namespace tandem::engine
