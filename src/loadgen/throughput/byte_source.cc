#include "loadgen/throughput/byte_source.h"

#include <fmt/format.h>
#include <zlib.h>

#include <cerrno>
#include <cstring>
#include <vector>

namespace tandem::loadgen {
namespace {

constexpr unsigned kPieceBytes = 256 * 1024;

class GzipFile {
 public:
  explicit GzipFile(const std::string& path) : file_(gzopen(path.c_str(), "rb")) {}
  ~GzipFile() {
    if (file_) gzclose_r(file_);
  }
  GzipFile(const GzipFile&) = delete;
  GzipFile& operator=(const GzipFile&) = delete;

  gzFile get() const { return file_; }
  // Z_BUF_ERROR: the last read ended in the middle of a gzip stream.
  int close() { return gzclose_r(std::exchange(file_, nullptr)); }

 private:
  gzFile file_;
};

}  // namespace

Status read_pieces(const std::string& path, const std::function<Status(std::string_view)>& take) {
  errno = 0;
  GzipFile file(path);
  if (!file.get()) return not_found(fmt::format("{}: cannot be opened: {}", path, std::strerror(errno)));
  std::vector<char> piece(kPieceBytes);
  while (true) {
    const int count = gzread(file.get(), piece.data(), kPieceBytes);
    if (count < 0) {
      int code = Z_OK;
      const char* text = gzerror(file.get(), &code);
      if (code == Z_ERRNO) return not_found(fmt::format("{}: cannot be read: {}", path, std::strerror(errno)));
      return corrupt(fmt::format("{}: expected a whole gzip stream: {}", path, text ? text : "damaged"));
    }
    if (count == 0) break;
    const Status taken = take(std::string_view(piece.data(), size_t(count)));
    if (!taken) return Error{taken.error().code, fmt::format("{}: {}", path, taken.error().message)};
  }
  if (file.close() != Z_OK) return corrupt(fmt::format("{}: expected a whole gzip stream: it is cut", path));
  return Ok{};
}

}  // namespace tandem::loadgen
