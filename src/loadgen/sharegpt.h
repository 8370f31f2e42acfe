// ShareGPT files: a JSON list of conversations, or one conversation a line.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace tandem::loadgen {

struct Conversation {
  std::string prompt;  // the first turn
  std::string answer;  // the second turn; its token count is the output length
};

// Objects with `conversations` (or `conversation`) of at least two turns, each turn with a text `value` (or `content`);
// those with fewer turns are left out. Errors name the file, the entry and the fault; no conversation at all is one.
Result<std::vector<Conversation>> load_sharegpt(const std::string& path);
// name: of the source, for messages.
Result<std::vector<Conversation>> parse_sharegpt(std::string_view bytes, std::string_view name);

}  // namespace tandem::loadgen
