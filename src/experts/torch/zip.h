// The ZIP archives that PyTorch writes: members stored without compression, their sizes taken from the central
// directory (the local headers lack them), ZIP64 included. Pure functions over bytes; the members borrow from them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace tandem::experts {

struct ZipMember {
  std::string_view name;
  std::span<const uint8_t> data;
  uint32_t crc32 = 0;  // as the archive says; not yet compared
};

// In the order of the central directory. Errors (kCorrupt): not an archive, cut short, compressed or encrypted members,
// offsets outside the file, two members of one name.
Result<std::vector<ZipMember>> parse_zip(std::span<const uint8_t> bytes);

uint32_t crc32_of(std::span<const uint8_t> bytes);

// Builds an archive member by member. Sizes are in the local headers, and no member may pass 4 GiB.
class ZipWriter {
 public:
  void add(std::string_view name, std::span<const uint8_t> data);
  Result<std::string> finish() &&;

 private:
  struct Entry {
    std::string name;
    uint64_t offset = 0, size = 0;
    uint32_t crc32 = 0;
  };
  std::string out_;
  std::vector<Entry> entries_;
};

}  // namespace tandem::experts
