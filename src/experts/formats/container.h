// JSON and safetensors read into the same value tree as `.pt` files, so that one reader interprets all three. Nested
// lists of numbers become tensors (int64 if all are whole numbers, else float64). Pure; any thread.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "experts/torch_file.h"

namespace tandem::experts {

// Told apart by the first bytes. Errors: kCorrupt or kInvalidInput, one line beginning with `name`.
Result<TorchValue> parse_container(std::span<const uint8_t> bytes, std::string_view name);

Result<TorchValue> parse_json_value(std::string_view text, std::string_view name);
Result<TorchValue> parse_safetensors_value(std::span<const uint8_t> bytes, std::string_view name);

// One key of the root per line, one row of a tensor per line. REQUIRES a dict with text keys.
std::string format_json_value(const TorchValue::Dict& root);

// A tensor, or nested lists or tuples of numbers as one. kInvalidInput: ragged, or not numbers. what: for messages.
Result<TorchTensor> to_tensor(const TorchValue& value, std::string_view what);

}  // namespace tandem::experts
