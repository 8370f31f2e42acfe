// The pickles inside `.pt` files, on a stack machine that cannot call anything. Pure; any thread.
#pragma once

#include <functional>

#include "experts/torch_file.h"

namespace tandem::experts {

// The bytes of the archive's member data/KEY, checked against its checksum.
using StorageLookup = std::function<Result<std::span<const uint8_t>>(std::string_view key)>;

// max_tensor_bytes: what all tensors may need together; views of one storage are copied each. Errors (kCorrupt) name
// the opcode or global, and its offset in the pickle.
Result<TorchValue> unpickle(std::span<const uint8_t> pickle, const StorageLookup& storage, uint64_t max_tensor_bytes);

struct StorageType {
  std::string_view name;  // "IntStorage"
  TorchType type;
};
std::span<const StorageType> storage_types();

}  // namespace tandem::experts
