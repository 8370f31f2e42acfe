// A file in pieces, gzipped or plain, so that files of any size are read in bounded memory.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace tandem::loadgen {

// take: called with each piece in order; its error ends the reading and is returned behind the file's name. Errors:
// kNotFound (cannot be opened or read), kCorrupt (a gzip stream that is damaged or cut).
Status read_pieces(const std::string& path, const std::function<Status(std::string_view)>& take);

}  // namespace tandem::loadgen
