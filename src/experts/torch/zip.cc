#include "experts/torch/zip.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <unordered_set>

#include "experts/formats/text.h"

namespace tandem::experts {
namespace {

constexpr uint32_t kLocalSignature = 0x04034b50, kCentralSignature = 0x02014b50, kEndSignature = 0x06054b50;
constexpr uint32_t kEnd64Signature = 0x06064b50, kLocator64Signature = 0x07064b50;
constexpr size_t kLocalBytes = 30, kCentralBytes = 46, kEndBytes = 22, kEnd64Bytes = 56, kLocator64Bytes = 20;
constexpr size_t kMaxComment = 65535;
constexpr uint64_t kSaturated32 = 0xffffffff, kSaturated16 = 0xffff;  // "see the ZIP64 field"
constexpr uint16_t kZip64Extra = 0x0001, kPaddingExtra = 0x4246;
constexpr uint64_t kAlignment = 64;

uint64_t read_le(std::span<const uint8_t> bytes, size_t at, size_t width) {
  uint64_t value = 0;
  for (size_t i = 0; i < width; ++i) value |= uint64_t(bytes[at + i]) << (8 * i);
  return value;
}

bool has_signature(std::span<const uint8_t> bytes, uint64_t at, uint32_t signature) {
  return bytes.size() >= 4 && at <= bytes.size() - 4 && read_le(bytes, at, 4) == signature;
}

struct Directory {
  uint64_t offset = 0, size = 0, num_members = 0;
};

// The end record is the last thing in the file but for a comment of known length.
Result<Directory> find_directory(std::span<const uint8_t> bytes) {
  if (!has_signature(bytes, 0, kLocalSignature) && !has_signature(bytes, 0, kEndSignature)) {
    return corrupt("not a ZIP archive (torch.save wrote another format before PyTorch 1.6; load and save it again)");
  }
  size_t end = bytes.size() < kEndBytes ? 0 : bytes.size() - kEndBytes + 1;
  const size_t stop = end > kMaxComment ? end - 1 - kMaxComment : 0;
  bool found = false;
  while (!found && end > stop) {
    --end;
    found = has_signature(bytes, end, kEndSignature) && read_le(bytes, end + 20, 2) == bytes.size() - end - kEndBytes;
  }
  if (!found) return corrupt("the archive's end record is missing: the file is cut short");
  Directory directory{read_le(bytes, end + 16, 4), read_le(bytes, end + 12, 4), read_le(bytes, end + 10, 2)};
  uint64_t limit = end;
  if (end >= kLocator64Bytes && has_signature(bytes, end - kLocator64Bytes, kLocator64Signature)) {
    const uint64_t at = read_le(bytes, end - kLocator64Bytes + 8, 8);
    limit = end - kLocator64Bytes;
    if (at > limit || limit - at < kEnd64Bytes || !has_signature(bytes, at, kEnd64Signature)) {
      return corrupt("the archive's ZIP64 end record is not where its locator says");
    }
    limit = at;
    directory = {read_le(bytes, at + 48, 8), read_le(bytes, at + 40, 8), read_le(bytes, at + 32, 8)};
  }
  if (directory.offset > limit || directory.size > limit - directory.offset ||
      directory.num_members > directory.size / kCentralBytes) {
    return corrupt(fmt::format("the archive's directory ({} members, {} bytes at {}) lies outside the file",
                               directory.num_members, directory.size, directory.offset));
  }
  return directory;
}

struct CentralEntry {
  ZipMember member;
  uint64_t size = 0, stored_size = 0, offset = 0;
};

// Takes the 64-bit values, which stand in this order and only for saturated fields.
Status read_zip64_extra(std::span<const uint8_t> extra, CentralEntry& entry) {
  uint64_t* const fields[] = {&entry.size, &entry.stored_size, &entry.offset};
  const bool needed = std::any_of(std::begin(fields), std::end(fields), [](auto* f) { return *f == kSaturated32; });
  if (!needed) return Ok{};
  for (size_t at = 0; at + 4 <= extra.size();) {
    const uint64_t id = read_le(extra, at, 2), length = read_le(extra, at + 2, 2);
    at += 4;
    if (length > extra.size() - at) break;
    if (id != kZip64Extra) {
      at += length;
      continue;
    }
    std::span<const uint8_t> values = extra.subspan(at, length);
    for (uint64_t* field : fields) {
      if (*field != kSaturated32) continue;
      if (values.size() < 8) return corrupt("a ZIP64 field is cut short");
      *field = read_le(values, 0, 8);
      values = values.subspan(8);
    }
    return Ok{};
  }
  return corrupt(fmt::format("member {} has no ZIP64 field", in_quotes(entry.member.name)));
}

// Sets data from the local header, whose name and extra field may have other lengths than the central one's.
Status locate_data(std::span<const uint8_t> bytes, uint64_t limit, CentralEntry& entry) {
  const std::string_view name = entry.member.name;
  if (entry.offset > limit || limit - entry.offset < kLocalBytes ||
      !has_signature(bytes, entry.offset, kLocalSignature)) {
    return corrupt(fmt::format("member {} has no local header at {}", in_quotes(name), entry.offset));
  }
  const uint64_t name_bytes = read_le(bytes, entry.offset + 26, 2), extra_bytes = read_le(bytes, entry.offset + 28, 2);
  const uint64_t after_header = entry.offset + kLocalBytes, data = after_header + name_bytes + extra_bytes;
  if (data > limit || entry.size > limit - data) {
    return corrupt(fmt::format("member {}: its {} bytes at {} do not lie in front of the directory", in_quotes(name),
                               entry.size, data));
  }
  if (std::string_view(reinterpret_cast<const char*>(bytes.data()) + after_header, name_bytes) != name) {
    return corrupt(fmt::format("member {} has another name in its local header", in_quotes(name)));
  }
  entry.member.data = bytes.subspan(data, entry.size);
  return Ok{};
}

void put_le(std::string& out, uint64_t value, size_t width) {
  for (size_t i = 0; i < width; ++i) out.push_back(char(value >> (8 * i)));
}

}  // namespace

Result<std::vector<ZipMember>> parse_zip(std::span<const uint8_t> bytes) {
  ASSIGN_OR_RETURN(const Directory directory, find_directory(bytes));
  std::vector<ZipMember> members;
  std::unordered_set<std::string_view> names;
  const uint64_t end = directory.offset + directory.size;
  uint64_t at = directory.offset;
  for (uint64_t i = 0; i < directory.num_members; ++i) {
    if (end - at < kCentralBytes || !has_signature(bytes, at, kCentralSignature)) {
      return corrupt(fmt::format("the archive's directory ends at member {} of {}", i, directory.num_members));
    }
    const uint64_t flags = read_le(bytes, at + 8, 2), method = read_le(bytes, at + 10, 2);
    const uint64_t name_bytes = read_le(bytes, at + 28, 2), extra_bytes = read_le(bytes, at + 30, 2);
    const uint64_t entry_bytes = kCentralBytes + name_bytes + extra_bytes + read_le(bytes, at + 32, 2);
    if (entry_bytes > end - at) return corrupt(fmt::format("the archive's directory is cut short at member {}", i));
    CentralEntry entry{{}, read_le(bytes, at + 24, 4), read_le(bytes, at + 20, 4), read_le(bytes, at + 42, 4)};
    entry.member.name = {reinterpret_cast<const char*>(bytes.data()) + at + kCentralBytes, name_bytes};
    entry.member.crc32 = uint32_t(read_le(bytes, at + 16, 4));
    RETURN_IF_ERROR(read_zip64_extra(bytes.subspan(at + kCentralBytes + name_bytes, extra_bytes), entry));
    if (method != 0 || (flags & 1) != 0 || entry.size != entry.stored_size) {
      return corrupt(fmt::format("member {} is {}; only stored members are read", in_quotes(entry.member.name),
                                 (flags & 1) != 0 ? "encrypted" : "compressed"));
    }
    RETURN_IF_ERROR(locate_data(bytes, directory.offset, entry));
    if (!names.insert(entry.member.name).second) {
      return corrupt(fmt::format("two members are called {}", in_quotes(entry.member.name)));
    }
    members.push_back(entry.member);
    at += entry_bytes;
  }
  return members;
}

uint32_t crc32_of(std::span<const uint8_t> bytes) { return uint32_t(::crc32_z(0, bytes.data(), bytes.size())); }

void ZipWriter::add(std::string_view name, std::span<const uint8_t> data) {
  const Entry entry{std::string(name), out_.size(), data.size(), crc32_of(data)};
  const uint64_t unpadded = out_.size() + kLocalBytes + name.size() + 4;
  const uint64_t padding = (kAlignment - unpadded % kAlignment) % kAlignment;
  put_le(out_, kLocalSignature, 4);
  put_le(out_, 0, 2);  // version needed
  put_le(out_, 0, 2);  // flags
  put_le(out_, 0, 2);  // stored
  put_le(out_, 0, 4);  // time and date: the same content gives the same bytes
  put_le(out_, entry.crc32, 4);
  put_le(out_, entry.size, 4);
  put_le(out_, entry.size, 4);
  put_le(out_, name.size(), 2);
  put_le(out_, 4 + padding, 2);
  out_ += name;
  put_le(out_, kPaddingExtra, 2);
  put_le(out_, padding, 2);
  out_.append(padding, 'Z');
  out_.append(reinterpret_cast<const char*>(data.data()), data.size());
  entries_.push_back(entry);
}

Result<std::string> ZipWriter::finish() && {
  const uint64_t directory = out_.size();
  for (const Entry& entry : entries_) {
    put_le(out_, kCentralSignature, 4);
    put_le(out_, 0, 2);  // made by
    put_le(out_, 0, 2);  // version needed
    put_le(out_, 0, 2);  // flags
    put_le(out_, 0, 2);  // stored
    put_le(out_, 0, 4);  // time and date
    put_le(out_, entry.crc32, 4);
    put_le(out_, entry.size, 4);
    put_le(out_, entry.size, 4);
    put_le(out_, entry.name.size(), 2);
    put_le(out_, 0, 2 + 2 + 2 + 2);  // extra, comment, disk, internal attributes
    put_le(out_, 0, 4);              // external attributes
    put_le(out_, entry.offset, 4);
    out_ += entry.name;
  }
  if (out_.size() >= kSaturated32 || entries_.size() >= kSaturated16) {
    return invalid_input("an archive of more than 4 GiB or 65,534 members is not written");
  }
  const uint64_t size = out_.size() - directory;
  put_le(out_, kEndSignature, 4);
  put_le(out_, 0, 4);  // disks
  put_le(out_, entries_.size(), 2);
  put_le(out_, entries_.size(), 2);
  put_le(out_, size, 4);
  put_le(out_, directory, 4);
  put_le(out_, 0, 2);  // comment
  return std::move(out_);
}

}  // namespace tandem::experts
