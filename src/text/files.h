// Whole files as strings. Private to the room.
#pragma once

#include <filesystem>
#include <string>

#include "base/result.h"

namespace tandem::text {

// Errors: kNotFound, or kCorrupt for what is empty or no file.
Result<std::string> read_file(const std::filesystem::path& path);

}  // namespace tandem::text
