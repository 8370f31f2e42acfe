// --config FILE: flags from a YAML file. The file is a flat mapping of flag names to scalars and lists, which is what
// SGLang takes; anything else of YAML (nested mappings, anchors, block texts, several documents) is refused by name, so
// that no setting is silently lost. Why no library: docs/decisions/0007-config-file.md.
//
//   model-path: /models/r1        # dashes or underscores
//   trust-remote-code: true       # a switch; false leaves it off
//   cuda-graph-bs: [1, 2, 4]      # or one "- item" per line below the key
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "app/flags.h"

namespace tandem::app {

// What the text says, as arguments: "--model-path=/models/r1", "--trust-remote-code", "--cuda-graph-bs", "1", "2", "4".
// name: for errors, which are "name:line: what".
Result<std::vector<std::string>> parse_config(std::string_view name, std::string_view text,
                                              std::span<const Flag> table);

// args with the files of their --config flags in front: what args say comes later, and wins.
Result<std::vector<std::string>> with_config_file(std::span<const Flag> table, std::span<const std::string> args);

}  // namespace tandem::app
