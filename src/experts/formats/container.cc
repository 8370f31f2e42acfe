#include "experts/formats/container.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/json.h"
#include "experts/formats/text.h"
#include "experts/torch/gather.h"

namespace tandem::experts {
namespace {

constexpr int kMaxDepth = 32;
constexpr size_t kMaxDimensions = 4;

// Collects the numbers of nested lists, of whatever kind, and insists on equal lengths.
class TensorBuilder {
 public:
  explicit TensorBuilder(std::string_view what) : what_(what) {}

  bool begin_list(size_t depth, size_t length) {
    if (depth >= kMaxDimensions) return fail(fmt::format("{}: more than {} dimensions", what_, kMaxDimensions));
    if (depth == shape_.size() && leaf_depth_ == kUnknown) {
      shape_.push_back(int64_t(length));
      return true;
    }
    if (depth >= leaf_depth_) return fail(fmt::format("{}: lists and numbers are mixed", what_));
    if (depth >= shape_.size() || shape_[depth] != int64_t(length)) {
      return fail(fmt::format("{}: a list of {} entries, those before it have {}", what_, length,
                              depth < shape_.size() ? shape_[depth] : 0));
    }
    return true;
  }
  bool add(size_t depth, int64_t value) {
    integers_.push_back(value);
    return add(depth, double(value));
  }
  bool add(size_t depth, double value) {
    if (leaf_depth_ == kUnknown) leaf_depth_ = depth;
    if (depth != leaf_depth_) return fail(fmt::format("{}: lists and numbers are mixed", what_));
    numbers_.push_back(value);
    return true;
  }
  bool fail(std::string message) {
    if (fault_.empty()) fault_ = std::move(message);
    return false;
  }
  const std::string& what() const { return what_; }

  Result<TorchTensor> finish() {
    if (!fault_.empty()) return invalid_input(fault_);
    if (integers_.size() == numbers_.size()) return integer_tensor(TorchType::kInt64, shape_, integers_);
    return number_tensor(shape_, numbers_);
  }

 private:
  static constexpr size_t kUnknown = std::numeric_limits<size_t>::max();
  const std::string what_;
  std::string fault_;
  size_t leaf_depth_ = kUnknown;
  std::vector<int64_t> shape_, integers_;
  std::vector<double> numbers_;
};

bool collect(const simdjson::dom::element element, size_t depth, TensorBuilder& builder) {
  if (element.is_int64()) return builder.add(depth, int64_t(element.get_int64().value_unsafe()));
  if (element.is_uint64() || element.is_double()) return builder.add(depth, element.get_double().value_unsafe());
  if (!element.is_array()) return builder.fail(fmt::format("{}: holds something that is not a number", builder.what()));
  const simdjson::dom::array array = element.get_array().value_unsafe();
  // size() saturates, so lists of more than 2^24 entries are counted.
  size_t length = 0;
  for (auto it = array.begin(); it != array.end(); ++it) ++length;
  if (!builder.begin_list(depth, length)) return false;
  return std::all_of(array.begin(), array.end(), [&](auto item) { return collect(item, depth + 1, builder); });
}

bool collect(const TorchValue& value, size_t depth, TensorBuilder& builder) {
  if (const auto* integer = value.get_if<int64_t>()) return builder.add(depth, *integer);
  if (const auto* number = value.get_if<double>()) return builder.add(depth, *number);
  const auto* tuple = value.get_if<TorchValue::Tuple>();
  const auto* list = tuple != nullptr ? &tuple->items : value.get_if<TorchValue::List>();
  if (list == nullptr) return builder.fail(fmt::format("{}: holds something that is not a number", builder.what()));
  if (!builder.begin_list(depth, list->size())) return false;
  return std::all_of(list->begin(), list->end(), [&](const auto& item) { return collect(item, depth + 1, builder); });
}

// Whether the first thing in the (nested) list is a number.
bool begins_with_number(simdjson::dom::element element) {
  for (int depth = 0; depth <= kMaxDepth && element.is_array(); ++depth) {
    const simdjson::dom::array array = element.get_array().value_unsafe();
    if (array.begin() == array.end()) return false;
    element = *array.begin();
  }
  return element.is_number();
}

Result<TorchValue> convert(const simdjson::dom::element element, std::string_view key, int depth) {
  if (depth > kMaxDepth) return invalid_input(fmt::format("values nested deeper than {}", kMaxDepth));
  switch (element.type()) {
    case simdjson::dom::element_type::NULL_VALUE: return TorchValue{};
    case simdjson::dom::element_type::BOOL: return TorchValue{element.get_bool().value_unsafe()};
    case simdjson::dom::element_type::INT64: return TorchValue{element.get_int64().value_unsafe()};
    case simdjson::dom::element_type::UINT64:
    case simdjson::dom::element_type::DOUBLE: return TorchValue{element.get_double().value_unsafe()};
    case simdjson::dom::element_type::STRING: return TorchValue{std::string(element.get_string().value_unsafe())};
    case simdjson::dom::element_type::ARRAY: {
      if (begins_with_number(element)) {
        TensorBuilder builder{in_quotes(key)};
        collect(element, 0, builder);
        ASSIGN_OR_RETURN(TorchTensor tensor, builder.finish());
        return TorchValue{std::move(tensor)};
      }
      TorchValue::List list;
      const simdjson::dom::array array = element.get_array().value_unsafe();
      for (const simdjson::dom::element item : array) {
        ASSIGN_OR_RETURN(TorchValue value, convert(item, key, depth + 1));
        list.push_back(std::move(value));
      }
      return TorchValue{std::move(list)};
    }
    case simdjson::dom::element_type::OBJECT: {
      TorchValue::Dict dict;
      const simdjson::dom::object object = element.get_object().value_unsafe();
      for (const auto field : object) {
        ASSIGN_OR_RETURN(TorchValue value, convert(field.value, field.key, depth + 1));
        dict.set(std::string(field.key), std::move(value));
      }
      return TorchValue{std::move(dict)};
    }
    default: return invalid_input("a JSON value of no known type");
  }
}

struct SafetensorsType {
  std::string_view name;
  TorchType type;
};
constexpr SafetensorsType kSafetensorsTypes[] = {
    {"BOOL", TorchType::kBool},   {"U8", TorchType::kUint8},      {"I8", TorchType::kInt8},
    {"I16", TorchType::kInt16},   {"I32", TorchType::kInt32},     {"I64", TorchType::kInt64},
    {"F16", TorchType::kFloat16}, {"BF16", TorchType::kBFloat16}, {"F32", TorchType::kFloat32},
    {"F64", TorchType::kFloat64},
};

// An entry of a safetensors header: {"dtype": ..., "shape": [...], "data_offsets": [begin, end]}.
Result<TorchTensor> safetensors_entry(const TorchValue& value, std::span<const uint8_t> data) {
  const TorchValue::Dict* entry = value.dict();
  const TorchValue* dtype = entry == nullptr ? nullptr : entry->find("dtype");
  const TorchValue* shape = entry == nullptr ? nullptr : entry->find("shape");
  const TorchValue* offsets = entry == nullptr ? nullptr : entry->find("data_offsets");
  const auto* type_name = dtype == nullptr ? nullptr : dtype->get_if<std::string>();
  if (type_name == nullptr || shape == nullptr || offsets == nullptr)
    return corrupt("needs dtype, shape, data_offsets");
  const auto* const type = std::find_if(std::begin(kSafetensorsTypes), std::end(kSafetensorsTypes),
                                        [&](const auto& row) { return row.name == *type_name; });
  if (type == std::end(kSafetensorsTypes)) return corrupt(fmt::format("dtype {} is not read", in_quotes(*type_name)));
  ASSIGN_OR_RETURN(const TorchTensor sizes, to_tensor(*shape, "shape"));
  ASSIGN_OR_RETURN(const TorchTensor range, to_tensor(*offsets, "data_offsets"));
  if (sizes.shape.size() != 1 || is_floating(sizes.type) || range.shape != std::vector<int64_t>{2} ||
      is_floating(range.type)) {
    return corrupt("shape and data_offsets are lists of whole numbers");
  }
  const int64_t begin = range.integer_at(0), end = range.integer_at(1);
  if (begin < 0 || end < begin || uint64_t(end) > data.size()) {
    return corrupt(fmt::format("bytes [{}, {}) of {}", begin, end, data.size()));
  }
  StridedView view{type->type, data.subspan(size_t(begin), size_t(end - begin)), 0, {}, {}};
  int64_t elements = 1;
  for (size_t i = 0; i < sizes.num_elements(); ++i) {
    const int64_t size = sizes.integer_at(i);
    view.sizes.push_back(size);
    if (size < 0 || __builtin_mul_overflow(elements, size, &elements)) return corrupt("absurd sizes");
  }
  view.strides.assign(view.sizes.size(), 1);
  for (size_t i = view.sizes.size(); i-- > 1;) {
    // An empty tensor may have huge sizes beside its zero.
    if (__builtin_mul_overflow(view.strides[i], std::max<int64_t>(1, view.sizes[i]), &view.strides[i - 1])) {
      return corrupt("absurd sizes");
    }
  }
  if (elements > end - begin || elements * element_bytes(view.type) != end - begin) {
    return corrupt(fmt::format("{} elements of {} in {} bytes", elements, *type_name, end - begin));
  }
  RETURN_IF_ERROR(check_view(view));
  return gather(view);
}

std::string json_number(double value) { return fmt::format("{}", value); }

std::string json_row(const TorchTensor& tensor, size_t begin, size_t count) {
  std::string out = "[";
  for (size_t i = begin; i < begin + count; ++i) {
    if (i > begin) out += ", ";
    out += is_floating(tensor.type) ? json_number(tensor.number_at(i)) : std::to_string(tensor.integer_at(i));
  }
  return out + "]";
}

std::string json_text(const TorchValue& value) {
  if (const auto* flag = value.get_if<bool>()) return *flag ? "true" : "false";
  if (const auto* integer = value.get_if<int64_t>()) return std::to_string(*integer);
  if (const auto* number = value.get_if<double>()) return json_number(*number);
  if (const auto* text = value.get_if<std::string>()) return json::dump(json::Value(*text));
  if (const TorchTensor* tensor = value.tensor()) {
    if (tensor->shape.size() != 2) return json_row(*tensor, 0, tensor->num_elements());
    std::string out = "[";
    const auto columns = size_t(tensor->shape[1]);
    for (size_t row = 0; row < size_t(tensor->shape[0]); ++row) {
      out += (row > 0 ? ",\n    " : "\n    ") + json_row(*tensor, row * columns, columns);
    }
    return out + "\n  ]";
  }
  if (const TorchValue::Dict* dict = value.dict()) {
    std::string out = "{";
    for (size_t i = 0; i < dict->keys.size(); ++i) {
      out += (i > 0 ? ", " : "") + json_text(dict->keys[i]) + ": " + json_text(dict->values[i]);
    }
    return out + "}";
  }
  return "null";
}

}  // namespace

Result<TorchTensor> to_tensor(const TorchValue& value, std::string_view what) {
  if (const TorchTensor* tensor = value.tensor()) return *tensor;
  TensorBuilder builder{what};
  collect(value, 0, builder);
  return builder.finish();
}

Result<TorchValue> parse_json_value(std::string_view text, std::string_view name) {
  ASSIGN_OR_RETURN(const json::Document document, json::Document::parse(text, name));
  Result<TorchValue> value = convert(document.root(), "", 0);
  if (!value) return Error{value.error().code, fmt::format("{}: {}", name, value.error().message)};
  return value;
}

Result<TorchValue> parse_safetensors_value(std::span<const uint8_t> bytes, std::string_view name) {
  constexpr size_t kLengthBytes = 8;
  uint64_t length = 0;
  for (size_t i = 0; i < std::min(kLengthBytes, bytes.size()); ++i) length |= uint64_t(bytes[i]) << (8 * i);
  if (bytes.size() < kLengthBytes || length > bytes.size() - kLengthBytes) {
    return corrupt(fmt::format("{}: the header of {} bytes does not fit in a file of {}", name, length, bytes.size()));
  }
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, length);
  ASSIGN_OR_RETURN(const TorchValue root, parse_json_value(header, name));
  if (root.dict() == nullptr) return corrupt(fmt::format("{}: the header is not a JSON object", name));
  const std::span<const uint8_t> data = bytes.subspan(kLengthBytes + length);
  TorchValue::Dict dict;
  uint64_t read_bytes = 0;
  for (size_t i = 0; i < root.dict()->keys.size(); ++i) {
    const auto& key = *root.dict()->keys[i].get_if<std::string>();
    const TorchValue& value = root.dict()->values[i];
    if (key == "__metadata__") {
      for (size_t j = 0; value.dict() != nullptr && j < value.dict()->keys.size(); ++j) {
        dict.set(*value.dict()->keys[j].get_if<std::string>(), value.dict()->values[j]);
      }
      continue;
    }
    Result<TorchTensor> tensor = safetensors_entry(value, data);
    if (!tensor) return corrupt(fmt::format("{}: tensor {}: {}", name, in_quotes(key), tensor.error().message));
    read_bytes += tensor->bytes.size();
    if (read_bytes > data.size()) return corrupt(fmt::format("{}: tensor {} overlaps another", name, in_quotes(key)));
    dict.set(key, {std::move(tensor).value()});
  }
  return TorchValue{std::move(dict)};
}

Result<TorchValue> parse_container(std::span<const uint8_t> bytes, std::string_view name) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.starts_with("PK")) return parse_torch_file(bytes, name);
  const size_t first = std::min(text.find_first_not_of(" \t\r\n"), text.size());
  if (text.substr(first, 1) == "{" || text.substr(first, 1) == "[") return parse_json_value(text, name);
  if (text.size() > 8 && text[8] == '{') return parse_safetensors_value(bytes, name);
  return corrupt(fmt::format("{}: neither JSON nor a .pt archive nor safetensors", name));
}

std::string format_json_value(const TorchValue::Dict& root) {
  std::string out = "{";
  for (size_t i = 0; i < root.keys.size(); ++i) {
    out += (i > 0 ? ",\n  " : "\n  ") + json_text(root.keys[i]) + ": " + json_text(root.values[i]);
  }
  return out + "\n}\n";
}

}  // namespace tandem::experts
