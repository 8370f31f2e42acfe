// The header of a safetensors file (huggingface.co/docs/safetensors): 8 bytes little-endian length, a JSON object of
// that many bytes, then the data. Parsing is a pure function over bytes, separate from the mapping, so that it can be
// fuzzed.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "device/dtype.h"

namespace tandem::model {

// A dtype as the format names it; `type` is empty where our kernels have none (F16, I64 ...).
struct StoredDType {
  std::string_view name;
  int32_t bytes = 0;
  std::optional<device::DType> type;
};
// Null: not a dtype of the format.
const StoredDType* find_stored_dtype(std::string_view name);

struct TensorEntry {
  std::string name;
  const StoredDType* dtype = nullptr;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes from the start of the file

  int64_t num_elements() const;
};

// Sorted by begin.
using TensorEntries = std::vector<TensorEntry>;

// bytes: the whole file, or at least its header. file_bytes: size of the file. name: for messages.
// Checks: length, JSON, dtype names, shape * dtype == span, duplicates, overlaps, gaps, spans beyond the end, bytes
// that belong to no tensor. Errors (kCorrupt) are one line naming file, tensor and fault.
Result<TensorEntries> parse_safetensors_header(std::span<const uint8_t> bytes, uint64_t file_bytes,
                                               std::string_view name);

// model.safetensors.index.json: tensor name -> file name. Refuses file names that leave the directory.
struct IndexEntry {
  std::string tensor, file;
};
Result<std::vector<IndexEntry>> parse_safetensors_index(std::string_view json, std::string_view name);

// "[256, 128]"
std::string shape_to_string(std::span<const int64_t> shape);

}  // namespace tandem::model
