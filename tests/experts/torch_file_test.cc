#include "experts/torch_file.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "experts/torch/zip.h"

namespace tandem::experts {
namespace {

using Bytes = std::vector<uint8_t>;

Bytes golden(const std::string& name) {
  std::ifstream in(TANDEM_SOURCE_DIR "/tests/data/experts/" + name, std::ios::binary);
  return Bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
}

Bytes to_bytes(const std::string& text) { return {text.begin(), text.end()}; }

TorchValue::Dict read_dict(const std::string& name) {
  const Result<TorchValue> value = parse_torch_file(golden(name), name);
  EXPECT_TRUE(value) << value.error().message;
  return value && value->dict() != nullptr ? *value->dict() : TorchValue::Dict{};
}

std::vector<double> numbers(const TorchTensor& tensor) {
  std::vector<double> out;
  for (size_t i = 0; i < tensor.num_elements(); ++i) out.push_back(tensor.number_at(i));
  return out;
}

// The tensor under a key as shape and numbers.
std::pair<std::vector<int64_t>, std::vector<double>> at(const TorchValue::Dict& dict, const std::string& key) {
  const TorchValue* value = dict.find(key);
  EXPECT_TRUE(value != nullptr && value->tensor() != nullptr) << key;
  if (value == nullptr || value->tensor() == nullptr) return {};
  return {value->tensor()->shape, numbers(*value->tensor())};
}

// An archive around a hand-written pickle.
Bytes archive(const std::string& pickle, const Bytes& storage = Bytes(16)) {
  ZipWriter zip;
  zip.add("a/data.pkl", to_bytes(pickle));
  zip.add("a/data/0", storage);
  return to_bytes(std::move(zip).finish().value());
}

std::string fault_of(const std::string& pickle) {
  const Result<TorchValue> value = parse_torch_file(archive(pickle), "f.pt");
  if (value) return "read";
  EXPECT_EQ(value.error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(value.error().message.find('\n'), std::string::npos);
  return value.error().message;
}

std::string text_item(const std::string& text) {
  return std::string("X") + char(text.size()) + std::string(3, 0) + text;
}

// A float32 tensor over data/0 with the given number of storage elements, offset, sizes and strides (one digit each).
std::string tensor_pickle(char elements, char offset, const std::string& sizes, const std::string& strides) {
  const auto tuple = [](const std::string& items) {
    std::string out = "(";
    for (char item : items) out += std::string("K") + char(item - '0');
    return out + "t";
  };
  return "\x80\x02"
         "ctorch._utils\n_rebuild_tensor_v2\n((" +
         text_item("storage") + "ctorch\nFloatStorage\n" + text_item("0") + text_item("cpu") + "K" +
         char(elements - '0') + "tQK" + char(offset - '0') + tuple(sizes) + tuple(strides) +
         "\x89"
         "ccollections\nOrderedDict\n)RtR.";
}

TEST(TorchFile, ARecordersDumpIsRead) {
  const TorchValue::Dict dump = read_dict("stat.pt");
  ASSERT_EQ(dump.keys.size(), 3U);
  EXPECT_EQ(*dump.find("rank"), TorchValue{int64_t{0}});
  EXPECT_EQ(*dump.find("average_utilization_rate_over_window"), TorchValue{0.625});
  const TorchTensor& counts = *dump.find("logical_count")->tensor();
  EXPECT_EQ(counts.type, TorchType::kInt32);
  EXPECT_EQ(counts.shape, (std::vector<int64_t>{3, 2, 4}));
  for (size_t i = 0; i < 24; ++i) EXPECT_EQ(counts.integer_at(i), int64_t(i));
}

TEST(TorchFile, AnArchiveWithA64BitDirectoryIsRead) {
  EXPECT_EQ(TorchValue{read_dict("zip64.pt")}, TorchValue{read_dict("stat.pt")});
  const Bytes whole = golden("zip64.pt");
  for (size_t length = 0; length < whole.size(); ++length) {
    EXPECT_FALSE(parse_torch_file({whole.data(), length}, "f.pt")) << length;
  }
}

TEST(TorchFile, ListsOfRecordsKeepTheirValues) {
  const TorchValue::Dict dump = read_dict("per_token_1.pt");
  const auto& records = std::get<TorchValue::List>(dump.find("records")->data);
  ASSERT_EQ(records.size(), 2U);
  EXPECT_EQ(*records[1].dict()->find("forward_pass_id"), TorchValue{int64_t{8}});
  EXPECT_EQ(*records[1].dict()->find("gatherer_key"), TorchValue{std::string("primary")});
  EXPECT_TRUE(records[0].dict()->find("extend_seq_lens")->is_none());
  EXPECT_EQ(*records[0].dict()->find("input_ids"),
            (TorchValue{TorchValue::List{{int64_t{1}}, {int64_t{300}}, {int64_t{70000}}}}));
  EXPECT_EQ(at(*records[1].dict(), "global_physical_count").second, std::vector<double>(12, 12));
  EXPECT_EQ(dump.find("last_physical_to_logical_map")->tensor()->type, TorchType::kInt64);
}

TEST(TorchFile, StridesOffsetsAndTypesAreHonoured) {
  using Shape = std::vector<int64_t>;
  using Numbers = std::vector<double>;
  const TorchValue::Dict views = read_dict("views.pt");
  EXPECT_EQ(at(views, "window"), std::pair(Shape({2, 3}), Numbers({8, 9, 10, 14, 15, 16})));
  EXPECT_EQ(at(views, "column"), std::pair(Shape({4}), Numbers({1, 7, 13, 19})));
  const auto [shape, transposed] = at(views, "transposed");
  EXPECT_EQ(shape, Shape({6, 4}));
  EXPECT_EQ(Numbers(transposed.begin(), transposed.begin() + 5), Numbers({0, 6, 12, 18, 1}));
  EXPECT_EQ(at(views, "scalar"), std::pair(Shape(), Numbers({2.5})));
  EXPECT_EQ(at(views, "half").second, Numbers({1.5, -2.0, 0x1p-24}));
  EXPECT_EQ(at(views, "bfloat16").second, Numbers({1.5, -3}));
  EXPECT_EQ(at(views, "bytes").second, Numbers({0, 255}));
  EXPECT_EQ(at(views, "small").second, Numbers({-128, 127}));
  EXPECT_EQ(at(views, "short").second, Numbers({-32768}));
  EXPECT_EQ(at(views, "flags").second, Numbers({1, 0}));
  EXPECT_EQ(at(views, "empty"), std::pair(Shape({0, 3}), Numbers()));
}

TEST(TorchFile, NestedPythonValuesKeepTheirTypes) {
  const TorchValue::Dict views = read_dict("views.pt");
  const TorchValue::Dict& nested = *views.find("nested")->dict();
  const int64_t big = int64_t{1} << 40;
  const TorchValue::List list = {{int64_t{1}}, {int64_t{-1}}, {big}, {-big}, {}, {true}, {0.5}, {std::string("text")}};
  EXPECT_EQ(*nested.find("list"), TorchValue{list});
  const TorchValue::Tuple inner{{{int64_t{2}}, {int64_t{3}}}};
  EXPECT_EQ(*nested.find("tuple"), (TorchValue{TorchValue::Tuple{{{int64_t{1}}, {inner}, {TorchValue::Tuple{}}}}}));
  EXPECT_EQ(nested.keys[2], TorchValue{int64_t{5}});
}

TEST(TorchFile, OrderedDictsWithAttributesAreDicts) {
  const TorchValue::Dict state = read_dict("state_dict.pt");
  ASSERT_EQ(state.keys.size(), 2U);
  EXPECT_EQ(state.find("weight")->tensor()->shape, (std::vector<int64_t>{1, 2}));
}

TEST(TorchFile, AForbiddenGlobalIsNamedWithItsPlace) {
  const Result<TorchValue> value = parse_torch_file(golden("forbidden.pt"), "forbidden.pt");
  ASSERT_FALSE(value);
  EXPECT_TRUE(std::string(value.error().message).starts_with("forbidden.pt: data.pkl, byte "));
  EXPECT_TRUE(value.error().message.ends_with(": GLOBAL 'posix system' is not allowed")) << value.error().message;
}

TEST(TorchFile, EveryPickleFaultIsNamed) {
  const std::pair<std::string, const char*> cases[] = {
      {"\x80\x02N.", "read"},
      {"\x80\x04N.", "f.pt: data.pkl, byte 0: pickle protocol 4, not 2"},
      {"\x80\x02"
       "cos\nsystem\n.",
       "f.pt: data.pkl, byte 2: GLOBAL 'os system' is not allowed"},
      {"\x80\x02"
       "c__builtin__\neval\n.",
       "f.pt: data.pkl, byte 2: GLOBAL '__builtin__ eval' is not allowed"},
      {"\x80\x02"
       "ctorch\nFloatStorage2\n.",
       "f.pt: data.pkl, byte 2: GLOBAL 'torch FloatStorage2' is not allowed"},
      {"\x80\x02"
       "cos",
       "f.pt: data.pkl, byte 2: a global name has no end"},
      {"\x80\x02N0.", "f.pt: data.pkl, byte 3: opcode POP is not allowed"},
      {"\x80\x02))\x81.", "f.pt: data.pkl, byte 4: opcode NEWOBJ is not allowed"},
      {"\x80\x02\xff", "f.pt: data.pkl, byte 2: opcode 0xff is not allowed"},
      {"\x80\x02"
       "N",
       "f.pt: data.pkl, byte 3: the pickle is cut short"},
      {"\x80\x02NN.", "f.pt: data.pkl leaves more than one value"},
      {"\x80\x02.", "f.pt: data.pkl, byte 2: the stack is empty"},
      {"\x80\x02(.", "f.pt: data.pkl, byte 3: the stack is empty"},
      {"\x80\x02"
       "a.",
       "f.pt: data.pkl, byte 2: the stack is empty"},
      {"\x80\x02t.", "f.pt: data.pkl, byte 2: there is no mark on the stack"},
      {"\x80\x02}(Nu.", "f.pt: data.pkl, byte 5: items for something that does not take them"},
      {"\x80\x02](NNu.", "f.pt: data.pkl, byte 6: items for something that does not take them"},
      {"\x80\x02h\x01.", "f.pt: data.pkl, byte 2: an unknown memo number"},
      {"\x80\x02Nr\xff\xff\xff\xff.", "f.pt: data.pkl, byte 3: a memo number beyond the pickle's size"},
      {std::string("\x80\x02X\xff\xff\xff\x7f", 7), "f.pt: data.pkl, byte 2: the pickle is cut short"},
      {"\x80\x02\x8a\x09"
       "123456789.",
       "f.pt: data.pkl, byte 2: an integer of more than 64 bits"},
      {"\x80\x02N)R.", "f.pt: data.pkl, byte 4: REDUCE of something that is not allowed to be called"},
      {"\x80\x02NNR.", "f.pt: data.pkl, byte 4: REDUCE without an argument tuple"},
      {"\x80\x02NQ.", "f.pt: data.pkl, byte 3: a persistent id that is not a tuple"},
      {"\x80\x02NNb.", "f.pt: data.pkl, byte 4: BUILD of something other than an OrderedDict"},
      {"\x80\x02"
       "ccollections\nOrderedDict\n.",
       "f.pt: data.pkl, byte 27: a type or storage stands where a value should"},
  };
  for (const auto& [pickle, message] : cases) EXPECT_EQ(fault_of(pickle), message);
}

TEST(TorchFile, SharedAndCyclicValuesCannotGrowWithoutBound) {
  std::string bomb = "\x80\x02(]q";
  bomb += '\0';
  for (char level = 1; level < 30; ++level) {  // each list holds the one before it four times
    bomb += "](";
    for (int i = 0; i < 4; ++i) bomb += std::string("h") + char(level - 1);
    bomb += std::string("eq") + level;
  }
  EXPECT_TRUE(fault_of(bomb + "t.").ends_with("the values repeat too often")) << fault_of(bomb + "t.");
  EXPECT_TRUE(fault_of(std::string("\x80\x02]q\0h\0a.", 9)).ends_with("values nested deeper than 32"));
}

TEST(TorchFile, TensorsStayInsideTheirStorage) {
  EXPECT_EQ(fault_of(tensor_pickle('4', '0', "22", "21")), "read");
  EXPECT_EQ(fault_of(tensor_pickle('4', '1', "3", "1")), "read");
  const char* const outside = ": a tensor that reaches outside its storage of 4 elements";
  EXPECT_TRUE(fault_of(tensor_pickle('4', '1', "22", "21")).ends_with(outside));
  EXPECT_TRUE(fault_of(tensor_pickle('4', '5', "0", "1")).ends_with(outside));
  EXPECT_TRUE(fault_of(tensor_pickle('4', '0', "9", "0")).ends_with(outside));
  EXPECT_TRUE(fault_of(tensor_pickle('4', '0', "22", "2")).ends_with(": a tensor of 2 sizes and 1 strides"));
  EXPECT_TRUE(fault_of(tensor_pickle('5', '0', "1", "1"))
                  .ends_with(": storage '0' should have 5 elements of 4 bytes and has 16 bytes"));
  EXPECT_FALSE(parse_torch_file(golden("expanded.pt"), "expanded.pt"));
}

TEST(TorchFile, ABrokenArchiveIsNamed) {
  const auto fault = [](const Bytes& bytes) {
    const auto value = parse_torch_file(bytes, "f.pt");
    return value ? "read" : value.error().message;
  };
  const Bytes whole = golden("stat.pt");
  Bytes bytes = whole;
  for (size_t length = 0; length < whole.size(); ++length) {
    bytes.assign(whole.begin(), whole.begin() + std::ptrdiff_t(length));
    EXPECT_NE(fault(bytes), "read") << length;
  }
  EXPECT_EQ(fault(to_bytes("{}")).substr(0, 23), "f.pt: not a ZIP archive");
  bytes = whole;
  const std::string needle = "average_utilization";
  *std::search(bytes.begin(), bytes.end(), needle.begin(), needle.end()) ^= 1;
  EXPECT_EQ(fault(bytes), "f.pt: member 'stat/data.pkl' does not match its checksum");
  ZipWriter big_endian;
  big_endian.add("a/data.pkl", to_bytes("\x80\x02N."));
  big_endian.add("a/byteorder", to_bytes("big"));
  EXPECT_EQ(fault(to_bytes(std::move(big_endian).finish().value())), "f.pt: byte order 'big'; only 'little' is read");
}

TEST(TorchFile, WhatIsWrittenIsReadBack) {
  const int64_t integers[] = {1, -2, int64_t{1} << 33, 4};
  const double fractions[] = {0.5, -0.25};
  TorchValue::Dict dict;
  dict.set("rank", {int64_t{0}});
  dict.set("large", {int64_t{-1} << 50});
  dict.set("counts", {integer_tensor(TorchType::kInt64, {2, 2}, integers)});
  dict.set("small", {integer_tensor(TorchType::kInt32, {1, 2, 1}, std::span(integers).first(2))});
  dict.set("shares", {number_tensor({2}, fractions)});
  dict.set("none", {});
  dict.set("list", {TorchValue::List{{true}, {false}, {2.5}, {TorchValue::Tuple{}}, {TorchValue::Dict{}}}});
  const std::string file = format_torch_file({dict}).value();
  const Result<TorchValue> read = parse_torch_file(to_bytes(file), "f.pt");
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(*read, TorchValue{dict});
}

TEST(TorchFile, StoragesLieOnMultiplesOf64Bytes) {
  const int64_t integers[] = {1, 2, 3};
  const std::string file = format_torch_file({TorchValue::List{{integer_tensor(TorchType::kInt8, {3}, integers)},
                                                               {integer_tensor(TorchType::kInt64, {3}, integers)}}})
                               .value();
  const Bytes bytes = to_bytes(file);
  const std::vector<ZipMember> members = parse_zip(bytes).value();
  EXPECT_EQ(members.size(), 5U);
  for (const ZipMember& member : members) EXPECT_EQ((member.data.data() - bytes.data()) % 64, 0);
}

}  // namespace
}  // namespace tandem::experts
