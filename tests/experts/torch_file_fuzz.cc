// Input: a whole `.pt` file, or (any other beginning) the pickle inside one, so that mutations get past the checksums.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "experts/torch/unpickle.h"
#include "experts/torch_file.h"

namespace {

using namespace tandem::experts;

uint64_t tensor_bytes(const TorchValue& value) {
  uint64_t sum = 0;
  if (const TorchTensor* tensor = value.tensor()) {
    uint64_t elements = 1;
    for (int64_t size : tensor->shape) elements *= uint64_t(size);
    CHECK(elements * uint64_t(element_bytes(tensor->type)) == tensor->bytes.size());
    return tensor->bytes.size();
  }
  if (const auto* list = value.get_if<TorchValue::List>()) {
    for (const TorchValue& item : *list) sum += tensor_bytes(item);
  }
  if (const TorchValue::Dict* dict = value.dict()) {
    CHECK(dict->keys.size() == dict->values.size());
    for (const TorchValue& item : dict->values) sum += tensor_bytes(item);
  }
  return sum;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const uint8_t> bytes{data, size};
  const uint8_t storage[96] = {};
  const StorageLookup lookup = [&](std::string_view key) {
    return key == "0" ? tandem::Result<std::span<const uint8_t>>(std::span(storage)) : tandem::corrupt("missing");
  };
  const bool archive = size >= 2 && data[0] == 'P' && data[1] == 'K';
  const auto value = archive ? parse_torch_file(bytes, "fuzz") : unpickle(bytes, lookup, sizeof(storage) * 4);
  if (!value) {
    CHECK(!value.error().message.empty());
    CHECK(value.error().message.find('\n') == std::string::npos);
    return 0;
  }
  CHECK(tensor_bytes(*value) <= 4 * (archive ? size : sizeof(storage)));
  const auto written = format_torch_file(*value);
  CHECK(written.has_value());
  const auto again = parse_torch_file({reinterpret_cast<const uint8_t*>(written->data()), written->size()}, "again");
  CHECK(again.has_value());
  // Numbers that are no numbers do not equal themselves, so the bytes are compared.
  CHECK(*format_torch_file(*again) == *written);
  return 0;
}
