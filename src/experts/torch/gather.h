// Strided views of a storage, made dense.
#pragma once

#include "experts/torch_file.h"

namespace tandem::experts {

// Offset, sizes and strides count elements.
struct StridedView {
  TorchType type = TorchType::kInt64;
  std::span<const uint8_t> storage;
  int64_t offset = 0;
  std::vector<int64_t> sizes, strides;
};

// Every element lies inside the storage, and there are no more elements than the storage has (so a view of stride 0,
// which repeats one, is refused when it grows). kCorrupt otherwise.
Status check_view(const StridedView& view);

// REQUIRES check_view(view).
int64_t num_elements(const StridedView& view);
TorchTensor gather(const StridedView& view);

}  // namespace tandem::experts
