#include "experts/torch_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <unordered_map>

#include "base/check.h"
#include "experts/formats/text.h"
#include "experts/torch/unpickle.h"
#include "experts/torch/zip.h"

namespace tandem::experts {
namespace {

// Tensors that share a storage are copied each; saved slices of one buffer stay below this.
constexpr uint64_t kMaxGrowth = 4;

struct TypeFacts {
  const char* name;
  int32_t bytes;
  bool floating;
};
constexpr TypeFacts kTypes[] = {{"bool", 1, false},   {"uint8", 1, false}, {"int8", 1, false},   {"int16", 2, false},
                                {"int32", 4, false},  {"int64", 8, false}, {"float16", 2, true}, {"bfloat16", 2, true},
                                {"float32", 4, true}, {"float64", 8, true}};

template <class T>
T load(const std::vector<uint8_t>& bytes, size_t index) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

float half_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, mantissa = bits & 0x3ff;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | mantissa << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  const float tiny = float(mantissa) * 0x1p-24F;
  return sign != 0 ? -tiny : tiny;
}

class Archive {
 public:
  // The one folder that has a data.pkl.
  static Result<Archive> open(std::span<const uint8_t> bytes) {
    ASSIGN_OR_RETURN(const std::vector<ZipMember> members, parse_zip(bytes));
    constexpr std::string_view kPickle = "/data.pkl";
    Archive archive;
    for (const ZipMember& member : members) {
      archive.members_.emplace(member.name, Entry{member, false});
      if (!member.name.ends_with(kPickle)) continue;
      if (!archive.root_.empty()) return corrupt("the archive has two data.pkl");
      archive.root_ = member.name.substr(0, member.name.size() - kPickle.size());
      if (archive.root_.empty()) return corrupt("the archive's data.pkl lies in no folder");
    }
    if (archive.root_.empty()) return corrupt("the archive has no data.pkl, so torch.save did not write it");
    return archive;
  }

  bool has(const std::string& path) const { return members_.contains(root_ + "/" + path); }

  // Compares the checksum, once per member.
  Result<std::span<const uint8_t>> read(const std::string& path) {
    const std::string name = root_ + "/" + path;
    const auto found = members_.find(name);
    if (found == members_.end()) return corrupt(fmt::format("member {} is missing", in_quotes(name)));
    Entry& entry = found->second;
    if (!entry.checked && crc32_of(entry.member.data) != entry.member.crc32) {
      return corrupt(fmt::format("member {} does not match its checksum", in_quotes(name)));
    }
    entry.checked = true;
    return entry.member.data;
  }

 private:
  struct Entry {
    ZipMember member;
    bool checked;
  };
  std::string root_;
  std::unordered_map<std::string, Entry> members_;
};

Result<TorchValue> parse(std::span<const uint8_t> bytes) {
  ASSIGN_OR_RETURN(Archive archive, Archive::open(bytes));
  if (archive.has("byteorder")) {
    ASSIGN_OR_RETURN(const std::span<const uint8_t> order, archive.read("byteorder"));
    const std::string_view text(reinterpret_cast<const char*>(order.data()), order.size());
    if (text != "little") return corrupt(fmt::format("byte order {}; only 'little' is read", in_quotes(text)));
  }
  ASSIGN_OR_RETURN(const std::span<const uint8_t> pickle, archive.read("data.pkl"));
  const auto storage = [&](std::string_view key) { return archive.read("data/" + std::string(key)); };
  return unpickle(pickle, storage, bytes.size() * kMaxGrowth);
}

class Pickler {
 public:
  std::string out = "\x80\x02";
  std::vector<const TorchTensor*> storages;

  void put(const TorchValue& value) {
    std::visit([&](const auto& v) { put_one(v); }, value.data);
  }

 private:
  void put_le(uint64_t value, size_t width) {
    for (size_t i = 0; i < width; ++i) out.push_back(char(value >> (8 * i)));
  }
  void put_items(const std::vector<TorchValue>& items) {
    for (const TorchValue& item : items) put(item);
  }

  void put_one(std::monostate) { out += 'N'; }
  void put_one(bool value) { out += value ? '\x88' : '\x89'; }
  void put_one(int64_t value) {
    if (value == int32_t(value)) {
      out += 'J';
      return put_le(uint64_t(value), 4);
    }
    out += "\x8a\x08";
    put_le(uint64_t(value), 8);
  }
  void put_one(double value) {
    out += 'G';
    put_le(__builtin_bswap64(std::bit_cast<uint64_t>(value)), 8);
  }
  void put_one(const std::string& text) {
    out += 'X';
    put_le(text.size(), 4);
    out += text;
  }
  void put_one(const TorchValue::List& items) {
    out += "](";
    put_items(items);
    out += 'e';
  }
  void put_one(const TorchValue::Tuple& tuple) {
    out += '(';
    put_items(tuple.items);
    out += 't';
  }
  void put_one(const TorchValue::Dict& dict) {
    out += "}(";
    for (size_t i = 0; i < dict.keys.size(); ++i) {
      put(dict.keys[i]);
      put(dict.values[i]);
    }
    out += 'u';
  }
  void put_one(const TorchTensor& tensor) {
    const auto types = storage_types();
    const auto type =
        std::find_if(types.begin(), types.end(), [&](const auto& row) { return row.type == tensor.type; });
    out += "ctorch._utils\n_rebuild_tensor_v2\n((";
    put_one(std::string("storage"));
    out += "ctorch\n" + std::string(type->name) + "\n";
    put_one(std::to_string(storages.size()));
    put_one(std::string("cpu"));
    put_one(int64_t(tensor.num_elements()));
    out += "tQ";
    put_one(int64_t{0});
    std::vector<int64_t> strides(tensor.shape.size(), 1);
    for (size_t i = strides.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(1, tensor.shape[i]);
    for (const std::vector<int64_t>& numbers : {tensor.shape, strides}) {
      out += '(';
      for (int64_t number : numbers) put_one(number);
      out += 't';
    }
    out +=
        "\x89"
        "ccollections\nOrderedDict\n)RtR";
    storages.push_back(&tensor);
  }
};

std::span<const uint8_t> as_bytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

}  // namespace

int32_t element_bytes(TorchType type) { return kTypes[size_t(type)].bytes; }
bool is_floating(TorchType type) { return kTypes[size_t(type)].floating; }
const char* to_string(TorchType type) { return kTypes[size_t(type)].name; }

int64_t TorchTensor::integer_at(size_t index) const {
  CHECK(!is_floating(type));
  DCHECK(index < num_elements());
  switch (type) {
    case TorchType::kBool:
    case TorchType::kUint8: return bytes[index];
    case TorchType::kInt8: return load<int8_t>(bytes, index);
    case TorchType::kInt16: return load<int16_t>(bytes, index);
    case TorchType::kInt32: return load<int32_t>(bytes, index);
    default: return load<int64_t>(bytes, index);
  }
}

double TorchTensor::number_at(size_t index) const {
  DCHECK(index < num_elements());
  switch (type) {
    case TorchType::kFloat16: return half_to_float(load<uint16_t>(bytes, index));
    case TorchType::kBFloat16: return std::bit_cast<float>(uint32_t(load<uint16_t>(bytes, index)) << 16);
    case TorchType::kFloat32: return load<float>(bytes, index);
    case TorchType::kFloat64: return load<double>(bytes, index);
    default: return double(integer_at(index));
  }
}

TorchTensor integer_tensor(TorchType type, std::vector<int64_t> shape, std::span<const int64_t> values) {
  CHECK(!is_floating(type));
  const auto width = size_t(element_bytes(type));
  TorchTensor tensor{type, std::move(shape), std::vector<uint8_t>(values.size() * width)};
  for (size_t i = 0; i < values.size(); ++i) std::memcpy(tensor.bytes.data() + i * width, &values[i], width);
  return tensor;
}

TorchTensor number_tensor(std::vector<int64_t> shape, std::span<const double> values) {
  TorchTensor tensor{TorchType::kFloat64, std::move(shape), std::vector<uint8_t>(values.size_bytes())};
  if (!values.empty()) std::memcpy(tensor.bytes.data(), values.data(), values.size_bytes());
  return tensor;
}

bool TorchValue::Tuple::operator==(const Tuple& other) const { return items == other.items; }
bool TorchValue::Dict::operator==(const Dict& other) const { return keys == other.keys && values == other.values; }

const TorchValue* TorchValue::Dict::find(std::string_view key) const {
  for (size_t i = keys.size(); i-- > 0;) {
    const auto* text = keys[i].get_if<std::string>();
    if (text != nullptr && *text == key) return &values[i];
  }
  return nullptr;
}

void TorchValue::Dict::set(std::string key, TorchValue value) {
  keys.push_back({std::move(key)});
  values.push_back(std::move(value));
}

Result<TorchValue> parse_torch_file(std::span<const uint8_t> bytes, std::string_view name) {
  Result<TorchValue> value = parse(bytes);
  if (!value) return Error{value.error().code, fmt::format("{}: {}", name, value.error().message)};
  return value;
}

Result<std::string> format_torch_file(const TorchValue& value) {
  Pickler pickler;
  pickler.put(value);
  pickler.out += '.';
  ZipWriter zip;
  zip.add("archive/data.pkl", as_bytes(pickler.out));
  zip.add("archive/byteorder", as_bytes("little"));
  for (size_t i = 0; i < pickler.storages.size(); ++i) {
    zip.add(fmt::format("archive/data/{}", i), pickler.storages[i]->bytes);
  }
  zip.add("archive/version", as_bytes("3\n"));
  return std::move(zip).finish();
}

}  // namespace tandem::experts
