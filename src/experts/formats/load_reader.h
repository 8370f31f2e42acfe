// Loads out of a value tree: `logical_count` tables and recorders' per-pass records.
#pragma once

#include "experts/files.h"
#include "experts/torch_file.h"

namespace tandem::experts {

// Messages lack the file's name.
Result<LoadFile> read_load_value(const TorchValue::Dict& dict, const ExpertShape& want, StepDetail detail);

// Adds the counts of another file of the same recording.
Status merge_loads(const LoadFile& from, LoadFile& into);

}  // namespace tandem::experts
