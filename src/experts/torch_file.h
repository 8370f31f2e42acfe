// PyTorch `.pt` files (the ZIP form that torch.save has written since 1.6), read and written without Python. A pickle
// is a program; this reader runs none of it: it knows the opcodes and names that dicts, lists and dense tensors need
// and refuses everything else. Values; any thread. Source: the ZIP application note (APPNOTE 6.3), Python's
// pickletools, torch.serialization.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/result.h"

namespace tandem::experts {

enum class TorchType : uint8_t {
  kBool,
  kUint8,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64
};

int32_t element_bytes(TorchType type);
bool is_floating(TorchType type);
const char* to_string(TorchType type);  // "int32"

// A dense tensor, row by row without gaps, whatever strides it had in the file. A tensor without dimensions has one
// element.
struct TorchTensor {
  TorchType type = TorchType::kInt64;
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;  // little-endian

  size_t num_elements() const { return bytes.size() / size_t(element_bytes(type)); }
  int64_t integer_at(size_t index) const;  // REQUIRES !is_floating(type), index in range
  double number_at(size_t index) const;    // any type
  bool operator==(const TorchTensor&) const = default;
};

TorchTensor integer_tensor(TorchType type, std::vector<int64_t> shape, std::span<const int64_t> values);
TorchTensor number_tensor(std::vector<int64_t> shape, std::span<const double> values);  // kFloat64

// What a file holds. The default is None.
struct TorchValue {
  using List = std::vector<TorchValue>;
  struct Tuple {
    std::vector<TorchValue> items;
    bool operator==(const Tuple&) const;
  };
  struct Dict {
    std::vector<TorchValue> keys, values;  // of the same length, in the file's order

    // The value of a text key; of several equal ones the last, as in Python. Null: not there.
    const TorchValue* find(std::string_view key) const;
    void set(std::string key, TorchValue value);
    bool operator==(const Dict&) const;
  };
  std::variant<std::monostate, bool, int64_t, double, std::string, List, Tuple, Dict, TorchTensor> data;

  template <class T>
  const T* get_if() const {
    return std::get_if<T>(&data);
  }
  bool is_none() const { return data.index() == 0; }
  const TorchTensor* tensor() const { return get_if<TorchTensor>(); }
  const Dict* dict() const { return get_if<Dict>(); }
  bool operator==(const TorchValue&) const = default;
};

// bytes: the whole file. name: for messages. Time and memory are bounded by a small multiple of the file's size.
// Errors (kCorrupt, one line): a broken archive, a wrong checksum, a byte order other than little, an opcode or a
// global name beyond the known ones (named, with its offset), a tensor that reaches outside its storage.
Result<TorchValue> parse_torch_file(std::span<const uint8_t> bytes, std::string_view name);

// The bytes of a file that torch.load(weights_only=True) reads as `value`. Members are stored, their data aligned to 64
// bytes. Error (kInvalidInput): more than 4 GiB.
Result<std::string> format_torch_file(const TorchValue& value);

}  // namespace tandem::experts
