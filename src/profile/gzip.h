// Files of traces: gzip to write, gzip or plain to read. Any thread.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace tandem::profile {

// A file that grows piece by piece under PATH.tmp and gets its name in finish(), so that whoever sees it sees all of
// it. Without finish() nothing stays behind.
class GzipFile {
 public:
  explicit GzipFile(std::string path);
  ~GzipFile();
  GzipFile(const GzipFile&) = delete;
  GzipFile& operator=(const GzipFile&) = delete;

  void write(std::string_view bytes);
  // Errors: kExhausted with path and reason (no such directory, no space left, ...), of this or an earlier call.
  Status finish();

 private:
  void fail(const char* what);
  const std::string path_, temporary_;
  void* file_ = nullptr;  // gzFile
  std::string fault_;     // the first
};

// Errors: kNotFound where it cannot be read, kCorrupt where the gzip data is damaged or cut, kInvalidInput beyond
// max_bytes.
Result<std::string> read_maybe_gzip(const std::string& path, size_t max_bytes);

// Makes the directory if it is missing, and sees whether files can be made in it. Errors: kInvalidInput, with the
// reason.
Status prepare_directory(const std::string& path);

}  // namespace tandem::profile
