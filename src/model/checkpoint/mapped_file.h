// MappedFile: a file's bytes, mapped read-only. Owns the mapping, move-only. Reading is any thread's.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/result.h"

namespace tandem::model {

class MappedFile {
 public:
  static Result<MappedFile> open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::string& path() const { return path_; }
  std::span<const uint8_t> bytes() const { return {data_, size_}; }

 private:
  MappedFile() = default;

  std::string path_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace tandem::model
