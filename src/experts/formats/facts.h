// The descriptive keys of the open formats, and access to the keys of a value tree.
#pragma once

#include "experts/files.h"
#include "experts/torch_file.h"

namespace tandem::experts {

// Numbers may stand as text (safetensors metadata can hold nothing else). Absent keys keep the defaults.
// kInvalidInput: a key of a wrong type, a format or version that is not ours, sizes that differ from `actual`.
Result<FileFacts> read_facts(const TorchValue::Dict& dict, std::string_view format, const ExpertShape& actual);

// Appends format, version, the sizes and every fact that is set.
void add_facts(const FileFacts& facts, std::string_view format, const ExpertShape& actual, TorchValue::Dict& dict);

// The first key that the placement format does not have; empty: there is none.
std::string unknown_placement_key(const TorchValue::Dict& dict);

// kInvalidInput if the model of the caller has other layers or experts.
Status check_same_model(const ExpertShape& actual, const ExpertShape& want);

}  // namespace tandem::experts
