#include "text/files.h"

#include <fstream>
#include <sstream>

namespace tandem::text {

Result<std::string> read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return not_found(path.string() + ": cannot open");
  std::ostringstream bytes;
  bytes << file.rdbuf();
  if (!file || !bytes) return corrupt(path.string() + ": is empty or not a file");
  return std::move(bytes).str();
}

}  // namespace tandem::text
