#include "experts/torch/unpickle.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>

#include "experts/formats/text.h"
#include "experts/torch/gather.h"

namespace tandem::experts {
namespace {

constexpr int kMaxDepth = 32;
// A name or string may stand in the tree several times, though its bytes are in the pickle once.
constexpr uint64_t kMaxValuesPerByte = 4;

constexpr StorageType kStorageTypes[] = {
    {"BoolStorage", TorchType::kBool},     {"ByteStorage", TorchType::kUint8},
    {"CharStorage", TorchType::kInt8},     {"ShortStorage", TorchType::kInt16},
    {"IntStorage", TorchType::kInt32},     {"LongStorage", TorchType::kInt64},
    {"HalfStorage", TorchType::kFloat16},  {"BFloat16Storage", TorchType::kBFloat16},
    {"FloatStorage", TorchType::kFloat32}, {"DoubleStorage", TorchType::kFloat64},
};

// Forbidden opcodes by their names in pickletools, for the message.
struct OpcodeName {
  uint8_t opcode;
  const char* name;
};
constexpr OpcodeName kForbidden[] = {
    {'0', "POP"},
    {'1', "POP_MARK"},
    {'2', "DUP"},
    {'F', "FLOAT"},
    {'I', "INT"},
    {'L', "LONG"},
    {'S', "STRING"},
    {'T', "BINSTRING"},
    {'U', "SHORT_BINSTRING"},
    {'V', "UNICODE"},
    {'P', "PERSID"},
    {'d', "DICT"},
    {'l', "LIST"},
    {'g', "GET"},
    {'p', "PUT"},
    {'i', "INST"},
    {'o', "OBJ"},
    {0x81, "NEWOBJ"},
    {0x92, "NEWOBJ_EX"},
    {0x93, "STACK_GLOBAL"},
    {0x82, "EXT1"},
    {0x83, "EXT2"},
    {0x84, "EXT4"},
    {0x8b, "LONG4"},
    {0x8c, "SHORT_BINUNICODE"},
    {0x8d, "BINUNICODE8"},
    {0x94, "MEMOIZE"},
    {0x95, "FRAME"},
    {0x8f, "EMPTY_SET"},
    {'B', "BINBYTES"},
    {'C', "SHORT_BINBYTES"},
};

enum class Kind : uint8_t {
  kMark,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kDict,
  kRebuildTensor,
  kOrderedDict,
  kStorageType,  // the three globals
  kStorage,
  kTensor,
};

struct Node {
  Kind kind = Kind::kNone;
  int64_t integer = 0;  // the value, or an index into items_, storages_ or tensors_
  double number = 0;
  std::string_view text;
};

struct Storage {
  TorchType type;
  std::string_view key;
  int64_t num_elements;
};

class Unpickler {
 public:
  Unpickler(std::span<const uint8_t> pickle, const StorageLookup& storage, uint64_t max_tensor_bytes)
      : pickle_(pickle),
        lookup_(storage),
        values_left_(pickle.size() * kMaxValuesPerByte),
        tensor_bytes_left_(max_tensor_bytes) {}

  Result<TorchValue> run() {
    while (!stopped_) {
      opcode_at_ = at_;
      const auto opcode = uint8_t(take(1));
      if (!error_) step(opcode);
      if (error_) return *error_;
    }
    if (stack_.size() != 1) return corrupt("data.pkl leaves more than one value");
    TorchValue value;
    build(stack_[0], 0, value);
    if (error_) return *error_;
    return value;
  }

 private:
  // The first fault stays; operands read as zero behind it.
  void fail(std::string_view what) {
    if (!error_) error_ = corrupt(fmt::format("data.pkl, byte {}: {}", opcode_at_, what));
  }

  uint64_t take(size_t width) {
    if (width > pickle_.size() - at_) {
      fail("the pickle is cut short");
      return 0;
    }
    uint64_t value = 0;
    for (size_t i = 0; i < width; ++i) value |= uint64_t(pickle_[at_ + i]) << (8 * i);
    at_ += width;
    return value;
  }

  std::string_view take_text(uint64_t length) {
    if (length > pickle_.size() - at_) {
      fail("the pickle is cut short");
      return {};
    }
    at_ += length;
    return {reinterpret_cast<const char*>(pickle_.data()) + at_ - length, size_t(length)};
  }

  std::string_view take_line() {
    const uint8_t* const begin = pickle_.data() + at_;
    const void* const end = std::memchr(begin, '\n', pickle_.size() - at_);
    if (end == nullptr) {
      fail("a global name has no end");
      return {};
    }
    const std::string_view line = take_text(uint64_t(static_cast<const uint8_t*>(end) - begin));
    ++at_;
    return line;
  }

  uint32_t add(Node node) {
    nodes_.push_back(node);
    return uint32_t(nodes_.size() - 1);
  }
  void push(Node node) { stack_.push_back(add(node)); }
  void push_integer(int64_t value) { push({Kind::kInt, value, 0, {}}); }
  void push_container(Kind kind, std::vector<uint32_t> items) {
    items_.push_back(std::move(items));
    push({kind, int64_t(items_.size() - 1), 0, {}});
  }

  // The top of the stack, if it is a value and not a mark.
  const Node* top() {
    if (stack_.empty() || nodes_[stack_.back()].kind == Kind::kMark) {
      fail("the stack is empty");
      return nullptr;
    }
    return &nodes_[stack_.back()];
  }

  std::vector<uint32_t> pop(size_t count) {
    if (stack_.size() < count || std::any_of(stack_.end() - std::ptrdiff_t(count), stack_.end(),
                                             [&](uint32_t node) { return nodes_[node].kind == Kind::kMark; })) {
      fail("the stack is empty");
      return {};
    }
    std::vector<uint32_t> items(stack_.end() - std::ptrdiff_t(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return items;
  }

  std::vector<uint32_t> pop_to_mark() {
    size_t count = 0;
    while (count < stack_.size() && nodes_[stack_[stack_.size() - 1 - count]].kind != Kind::kMark) ++count;
    if (count == stack_.size()) {
      fail("there is no mark on the stack");
      return {};
    }
    std::vector<uint32_t> items = pop(count);
    stack_.pop_back();
    return items;
  }

  void append(Kind kind, const std::vector<uint32_t>& items) {
    const Node* container = top();
    if (container == nullptr) return;
    if (container->kind != kind || (kind == Kind::kDict && items.size() % 2 != 0)) {
      return fail("items for something that does not take them");
    }
    std::vector<uint32_t>& to = items_[size_t(container->integer)];
    to.insert(to.end(), items.begin(), items.end());
  }

  void remember(uint64_t slot) {
    if (top() == nullptr) return;
    if (slot >= pickle_.size()) return fail("a memo number beyond the pickle's size");
    if (slot >= memo_.size()) memo_.resize(slot + 1, kNoNode);
    memo_[slot] = stack_.back();
  }

  void recall(uint64_t slot) {
    if (slot >= memo_.size() || memo_[slot] == kNoNode) return fail("an unknown memo number");
    stack_.push_back(memo_[slot]);
  }

  void long1() {
    const size_t width = take(1);
    if (width > 8) return fail("an integer of more than 64 bits");
    uint64_t value = take(width);
    if (width > 0 && width < 8 && (value >> (8 * width - 1)) != 0) value |= ~uint64_t{0} << (8 * width);
    push_integer(int64_t(value));
  }

  void global() {
    const std::string_view module = take_line();
    const std::string_view name = error_ ? std::string_view{} : take_line();
    if (error_) return;
    if (module == "torch._utils" && name == "_rebuild_tensor_v2") return push({Kind::kRebuildTensor, 0, 0, {}});
    if (module == "collections" && name == "OrderedDict") return push({Kind::kOrderedDict, 0, 0, {}});
    if (module == "torch") {
      for (const StorageType& storage : kStorageTypes) {
        if (storage.name == name) return push({Kind::kStorageType, int64_t(storage.type), 0, {}});
      }
    }
    fail(fmt::format("GLOBAL {} is not allowed", in_quotes(std::string(module) + " " + std::string(name))));
  }

  bool is(uint32_t node, Kind kind) const { return nodes_[node].kind == kind; }
  const std::vector<uint32_t>& items(uint32_t node) const { return items_[size_t(nodes_[node].integer)]; }

  void persistent_id() {
    const std::vector<uint32_t> popped = pop(1);
    if (error_) return;
    if (!is(popped[0], Kind::kTuple)) return fail("a persistent id that is not a tuple");
    const std::vector<uint32_t>& id = items(popped[0]);
    if (id.size() != 5 || !is(id[0], Kind::kString) || nodes_[id[0]].text != "storage" ||
        !is(id[1], Kind::kStorageType) || !is(id[2], Kind::kString) || !is(id[4], Kind::kInt) ||
        nodes_[id[4]].integer < 0) {
      return fail("a persistent id that is not ('storage', type, key, location, elements)");
    }
    storages_.push_back({TorchType(nodes_[id[1]].integer), nodes_[id[2]].text, nodes_[id[4]].integer});
    push({Kind::kStorage, int64_t(storages_.size() - 1), 0, {}});
  }

  void reduce() {
    const std::vector<uint32_t> call = pop(2);
    if (error_) return;
    if (!is(call[1], Kind::kTuple)) return fail("REDUCE without an argument tuple");
    const std::vector<uint32_t>& arguments = items(call[1]);
    if (is(call[0], Kind::kOrderedDict)) {
      if (!arguments.empty()) return fail("an OrderedDict made from arguments");
      return push_container(Kind::kDict, {});
    }
    if (!is(call[0], Kind::kRebuildTensor)) return fail("REDUCE of something that is not allowed to be called");
    rebuild_tensor(arguments);
  }

  bool take_integers(uint32_t tuple, std::vector<int64_t>& out) const {
    if (!is(tuple, Kind::kTuple)) return false;
    for (uint32_t item : items(tuple)) {
      if (!is(item, Kind::kInt)) return false;
      out.push_back(nodes_[item].integer);
    }
    return true;
  }

  // (storage, offset, sizes, strides, requires_grad, hooks, perhaps metadata)
  void rebuild_tensor(const std::vector<uint32_t>& arguments) {
    StridedView view;
    if (arguments.size() < 6 || arguments.size() > 7 || !is(arguments[0], Kind::kStorage) ||
        !is(arguments[1], Kind::kInt) || !take_integers(arguments[2], view.sizes) ||
        !take_integers(arguments[3], view.strides)) {
      return fail("a tensor that is not (storage, offset, sizes, strides, requires_grad, hooks)");
    }
    const Storage& storage = storages_[size_t(nodes_[arguments[0]].integer)];
    view.offset = nodes_[arguments[1]].integer;
    view.type = storage.type;
    const auto bytes = lookup_(storage.key);
    if (!bytes) return fail(bytes.error().message);
    view.storage = *bytes;
    const auto width = uint64_t(element_bytes(storage.type));
    if (uint64_t(storage.num_elements) > view.storage.size() ||
        uint64_t(storage.num_elements) * width != view.storage.size()) {
      return fail(fmt::format("storage {} should have {} elements of {} bytes and has {} bytes", in_quotes(storage.key),
                              storage.num_elements, width, view.storage.size()));
    }
    if (const Status status = check_view(view); !status) return fail(status.error().message);
    tensors_.push_back(std::move(view));
    push({Kind::kTensor, int64_t(tensors_.size() - 1), 0, {}});
  }

  void build_object() {  // BUILD: attributes of an OrderedDict, which nothing here reads
    pop(1);
    const Node* object = error_ ? nullptr : top();
    if (object != nullptr && object->kind != Kind::kDict) fail("BUILD of something other than an OrderedDict");
  }

  void forbidden(uint8_t opcode) {
    for (const OpcodeName& row : kForbidden) {
      if (row.opcode == opcode) return fail(fmt::format("opcode {} is not allowed", row.name));
    }
    fail(fmt::format("opcode 0x{:02x} is not allowed", opcode));
  }

  void step(uint8_t opcode) {
    switch (opcode) {
      case 0x80:
        if (const uint64_t protocol = take(1); protocol != 2) fail(fmt::format("pickle protocol {}, not 2", protocol));
        return;
      case '.': stopped_ = top() != nullptr; return;
      case '(': return push({Kind::kMark, 0, 0, {}});
      case 'N': return push({Kind::kNone, 0, 0, {}});
      case 0x88: return push({Kind::kBool, 1, 0, {}});
      case 0x89: return push({Kind::kBool, 0, 0, {}});
      case 'K': return push_integer(int64_t(take(1)));
      case 'M': return push_integer(int64_t(take(2)));
      case 'J': return push_integer(int32_t(uint32_t(take(4))));
      case 0x8a: return long1();
      case 'G': return push({Kind::kFloat, 0, std::bit_cast<double>(__builtin_bswap64(take(8))), {}});
      case 'X': return push({Kind::kString, 0, 0, take_text(take(4))});
      case '}': return push_container(Kind::kDict, {});
      case ']': return push_container(Kind::kList, {});
      case ')': return push_container(Kind::kTuple, {});
      case 't': return push_container(Kind::kTuple, pop_to_mark());
      case 0x85:
      case 0x86:
      case 0x87: return push_container(Kind::kTuple, pop(size_t(opcode - 0x84)));
      case 'a': return append(Kind::kList, pop(1));
      case 'e': return append(Kind::kList, pop_to_mark());
      case 's': return append(Kind::kDict, pop(2));
      case 'u': return append(Kind::kDict, pop_to_mark());
      case 'q': return remember(take(1));
      case 'r': return remember(take(4));
      case 'h': return recall(take(1));
      case 'j': return recall(take(4));
      case 'c': return global();
      case 'Q': return persistent_id();
      case 'R': return reduce();
      case 'b': return build_object();
      default: return forbidden(opcode);
    }
  }

  void build_items(uint32_t node, int depth, std::vector<TorchValue>& out) {
    const std::vector<uint32_t>& children = items(node);
    for (size_t i = 0; i < children.size() && !error_; ++i) build(children[i], depth + 1, out.emplace_back());
  }

  void build_dict(uint32_t node, int depth, TorchValue::Dict& out) {
    const std::vector<uint32_t>& children = items(node);
    for (size_t i = 0; i < children.size() && !error_; i += 2) {
      build(children[i], depth + 1, out.keys.emplace_back());
      build(children[i + 1], depth + 1, out.values.emplace_back());
    }
  }

  // Turns the graph into a tree. Shared nodes are copied, within the budget; a cycle ends at the depth's limit.
  void build(uint32_t index, int depth, TorchValue& out) {
    if (depth > kMaxDepth) return fail(fmt::format("values nested deeper than {}", kMaxDepth));
    if (values_left_ == 0) return fail("the values repeat too often");
    --values_left_;
    const Node& node = nodes_[index];
    switch (node.kind) {
      case Kind::kNone: return;
      case Kind::kBool: out.data = node.integer != 0; return;
      case Kind::kInt: out.data = node.integer; return;
      case Kind::kFloat: out.data = node.number; return;
      case Kind::kString: {
        if (node.text.size() > values_left_) return fail("the values repeat too often");
        values_left_ -= node.text.size();
        out.data = std::string(node.text);
        return;
      }
      case Kind::kList: return build_items(index, depth, out.data.emplace<TorchValue::List>());
      case Kind::kTuple: return build_items(index, depth, out.data.emplace<TorchValue::Tuple>().items);
      case Kind::kDict: return build_dict(index, depth, out.data.emplace<TorchValue::Dict>());
      case Kind::kTensor: {
        const StridedView& view = tensors_[size_t(node.integer)];
        const uint64_t bytes = uint64_t(num_elements(view)) * uint64_t(element_bytes(view.type));
        if (bytes > tensor_bytes_left_) return fail("the tensors need far more bytes than the file has");
        tensor_bytes_left_ -= bytes;
        out.data = gather(view);
        return;
      }
      default: return fail("a type or storage stands where a value should");
    }
  }

  static constexpr uint32_t kNoNode = ~uint32_t{0};

  const std::span<const uint8_t> pickle_;
  const StorageLookup& lookup_;
  uint64_t values_left_, tensor_bytes_left_;
  size_t at_ = 0, opcode_at_ = 0;
  bool stopped_ = false;
  std::optional<Error> error_;
  std::vector<Node> nodes_;
  std::vector<std::vector<uint32_t>> items_;
  std::vector<Storage> storages_;
  std::vector<StridedView> tensors_;
  std::vector<uint32_t> stack_, memo_;
};

}  // namespace

Result<TorchValue> unpickle(std::span<const uint8_t> pickle, const StorageLookup& storage, uint64_t max_tensor_bytes) {
  return Unpickler(pickle, storage, max_tensor_bytes).run();
}

std::span<const StorageType> storage_types() { return kStorageTypes; }

}  // namespace tandem::experts
