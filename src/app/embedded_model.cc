#include "app/embedded_model.h"

#include <filesystem>

namespace tandem::app {

Result<std::string> embedded_model_directory() {
  std::error_code error;
  std::filesystem::path folder = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  for (; !error && folder.has_relative_path(); folder = folder.parent_path()) {
    for (const char* place : {"models/tiny", "share/tandem/models/tiny"}) {
      if (std::filesystem::exists(folder / place / "config.json", error)) return (folder / place).string();
    }
  }
  return not_found("the embedded model (models/tiny) is not above the executable: give --model-path DIR");
}

}  // namespace tandem::app
