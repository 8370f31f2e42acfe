#include "model/checkpoint/safetensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

#include "base/json.h"

namespace tandem::model {

namespace {

using device::DType;
using simdjson::SUCCESS;

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kMaxRank = 8;

constexpr StoredDType kDTypes[] = {
    {"F32", 4, DType::kF32},
    {"BF16", 2, DType::kBF16},
    {"F8_E4M3", 1, DType::kF8E4M3},
    {"I32", 4, DType::kI32},
    {"F64", 8, {}},
    {"F16", 2, {}},
    {"F8_E5M2", 1, {}},
    {"F8_E8M0", 1, {}},
    {"I64", 8, {}},
    {"I16", 2, {}},
    {"I8", 1, {}},
    {"U64", 8, {}},
    {"U32", 4, {}},
    {"U16", 2, {}},
    {"U8", 1, {}},
    {"BOOL", 1, {}},
};

// Reads shape and its element count; false: not an array of non-negative integers, or the count overflows.
bool read_shape(simdjson::dom::element element, TensorEntry& entry, uint64_t& num_elements) {
  simdjson::dom::array array;
  if (element.get(array) != SUCCESS || array.size() > kMaxRank) return false;
  num_elements = 1;
  for (simdjson::dom::element item : array) {
    uint64_t extent = 0;
    if (item.get(extent) != SUCCESS || extent > uint64_t(INT64_MAX)) return false;
    if (__builtin_mul_overflow(num_elements, extent, &num_elements)) return false;
    entry.shape.push_back(int64_t(extent));
  }
  return true;
}

// What is wrong with one header entry, or empty. data_begin: where the data starts in the file.
std::string read_entry(simdjson::dom::element element, uint64_t data_begin, uint64_t file_bytes, TensorEntry& entry) {
  std::string_view dtype;
  if (element["dtype"].get(dtype) != SUCCESS) return "has no dtype";
  entry.dtype = find_stored_dtype(dtype);
  if (!entry.dtype) return fmt::format("has unknown dtype '{}'", dtype.substr(0, 32));
  simdjson::dom::element shape;
  uint64_t num_elements = 0;
  if (element["shape"].get(shape) != SUCCESS) return "has no shape";
  if (!read_shape(shape, entry, num_elements)) return "has a bad shape";
  simdjson::dom::array offsets;
  uint64_t begin = 0, end = 0;
  if (element["data_offsets"].get(offsets) != SUCCESS || offsets.size() != 2 || offsets.at(0).get(begin) != SUCCESS ||
      offsets.at(1).get(end) != SUCCESS || begin > end) {
    return "has bad data_offsets";
  }
  uint64_t wanted = 0;
  if (__builtin_mul_overflow(num_elements, uint64_t(entry.dtype->bytes), &wanted) || wanted != end - begin) {
    return fmt::format("has {} bytes, but {} {} needs {}", end - begin, entry.dtype->name, shape_to_string(entry.shape),
                       num_elements * uint64_t(entry.dtype->bytes));
  }
  if (end > file_bytes - data_begin) {
    return fmt::format("ends at byte {}, beyond the file's {}", data_begin + end, file_bytes);
  }
  entry.begin = data_begin + begin;
  entry.end = data_begin + end;
  return "";
}

std::string name_for_message(std::string_view tensor) { return std::string(tensor.substr(0, 200)); }

// Sorts by place and checks that the entries tile [data_begin, file_bytes) exactly, and that names differ.
Status check_tiling(TensorEntries& entries, uint64_t data_begin, uint64_t file_bytes, std::string_view name) {
  std::vector<std::string_view> names;
  for (const TensorEntry& entry : entries) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) {
    return corrupt(fmt::format("{}: tensor '{}' appears twice in the header", name, name_for_message(*twice)));
  }
  std::sort(entries.begin(), entries.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  uint64_t at = data_begin;
  for (const TensorEntry& entry : entries) {
    if (entry.begin != at) {
      return corrupt(fmt::format("{}: tensor '{}' begins at byte {}, {} {}", name, name_for_message(entry.name),
                                 entry.begin, entry.begin < at ? "inside the one that ends at" : "after a gap from",
                                 at));
    }
    at = entry.end;
  }
  if (at != file_bytes) {
    return corrupt(fmt::format("{}: {} bytes after the last tensor belong to none", name, file_bytes - at));
  }
  return Ok{};
}

}  // namespace

const StoredDType* find_stored_dtype(std::string_view name) {
  for (const StoredDType& dtype : kDTypes) {
    if (dtype.name == name) return &dtype;
  }
  return nullptr;
}

int64_t TensorEntry::num_elements() const {
  int64_t n = 1;
  for (int64_t extent : shape) n *= extent;
  return n;
}

std::string shape_to_string(std::span<const int64_t> shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

Result<TensorEntries> parse_safetensors_header(std::span<const uint8_t> bytes, uint64_t file_bytes,
                                               std::string_view name) {
  if (bytes.size() < kLengthBytes || file_bytes < kLengthBytes) {
    return corrupt(fmt::format("{}: {} bytes are too few for a safetensors file", name, file_bytes));
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - kLengthBytes) {
    return corrupt(fmt::format("{}: the header claims {} bytes, the file has {}: truncated or not safetensors", name,
                               header_bytes, file_bytes));
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, header_bytes);
  auto document = json::Document::parse(text, fmt::format("{}: header", name));
  if (!document) return corrupt(document.error().message);
  simdjson::dom::object object;
  if (document->root().get(object) != SUCCESS) return corrupt(fmt::format("{}: header is not a JSON object", name));

  const uint64_t data_begin = kLengthBytes + header_bytes;
  TensorEntries entries;
  for (const auto& field : object) {
    if (field.key == "__metadata__") continue;
    TensorEntry entry;
    entry.name = std::string(field.key);
    const std::string fault = read_entry(field.value, data_begin, file_bytes, entry);
    if (!fault.empty()) return corrupt(fmt::format("{}: tensor '{}' {}", name, name_for_message(entry.name), fault));
    entries.push_back(std::move(entry));
  }
  RETURN_IF_ERROR(check_tiling(entries, data_begin, file_bytes, name));
  return entries;
}

Result<std::vector<IndexEntry>> parse_safetensors_index(std::string_view json, std::string_view name) {
  auto document = json::Document::parse(json, name);
  if (!document) return corrupt(document.error().message);
  simdjson::dom::object map;
  if (document->root()["weight_map"].get(map) != SUCCESS) {
    return corrupt(fmt::format("{}: has no weight_map object", name));
  }
  std::vector<IndexEntry> entries;
  for (const auto& field : map) {
    std::string_view file;
    if (field.value.get(file) != SUCCESS) {
      return corrupt(fmt::format("{}: weight_map of '{}' is not a string", name, name_for_message(field.key)));
    }
    if (file.empty() || file.find('/') != std::string_view::npos || file.find('\0') != std::string_view::npos ||
        file == "." || file == "..") {
      return corrupt(fmt::format("{}: '{}' is not the name of a file beside it", name, file.substr(0, 200)));
    }
    entries.push_back({std::string(field.key), std::string(file)});
  }
  if (entries.empty()) return corrupt(fmt::format("{}: weight_map is empty", name));
  return entries;
}

}  // namespace tandem::model
