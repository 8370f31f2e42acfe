#include "experts/torch/gather.h"

#include <fmt/format.h>

#include <cstring>

namespace tandem::experts {
namespace {

constexpr size_t kMaxDimensions = 8;

std::vector<int64_t> dense_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  return strides;
}

bool is_dense(const StridedView& view) {
  const std::vector<int64_t> dense = dense_strides(view.sizes);
  for (size_t i = 0; i < view.sizes.size(); ++i) {
    if (view.sizes[i] != 1 && view.strides[i] != dense[i]) return false;
  }
  return true;
}

}  // namespace

Status check_view(const StridedView& view) {
  const auto capacity = int64_t(view.storage.size() / size_t(element_bytes(view.type)));
  if (view.sizes.size() != view.strides.size() || view.sizes.size() > kMaxDimensions) {
    return corrupt(fmt::format("a tensor of {} sizes and {} strides", view.sizes.size(), view.strides.size()));
  }
  int64_t count = 1, last = view.offset;
  bool fits = view.offset >= 0 && view.offset <= capacity, empty = false;
  for (size_t i = 0; i < view.sizes.size(); ++i) {
    const int64_t size = view.sizes[i], stride = view.strides[i];
    int64_t reach = 0;
    empty |= size == 0;
    fits = fits && size >= 0 && stride >= 0;
    if (!fits || size == 0) continue;
    fits = !__builtin_mul_overflow(size - 1, stride, &reach) && !__builtin_add_overflow(last, reach, &last) &&
           !__builtin_mul_overflow(count, size, &count);
  }
  if (fits && !empty) fits = last < capacity && count <= capacity;
  if (!fits) return corrupt(fmt::format("a tensor that reaches outside its storage of {} elements", capacity));
  return Ok{};
}

int64_t num_elements(const StridedView& view) {
  int64_t count = 1;
  for (int64_t size : view.sizes) {
    if (size == 0) return 0;
  }
  for (int64_t size : view.sizes) count *= size;
  return count;
}

TorchTensor gather(const StridedView& view) {
  const auto width = size_t(element_bytes(view.type));
  const auto count = size_t(num_elements(view));
  TorchTensor tensor{view.type, view.sizes, std::vector<uint8_t>(count * width)};
  if (count == 0) return tensor;
  const uint8_t* const from = view.storage.data() + size_t(view.offset) * width;
  if (is_dense(view)) {
    std::memcpy(tensor.bytes.data(), from, count * width);
    return tensor;
  }
  std::vector<int64_t> index(view.sizes.size(), 0);
  int64_t at = 0;
  for (size_t i = 0; i < count; ++i) {
    std::memcpy(tensor.bytes.data() + i * width, from + size_t(at) * width, width);
    for (size_t d = index.size(); d-- > 0;) {
      at += view.strides[d];
      if (++index[d] < view.sizes[d]) break;
      at -= view.strides[d] * view.sizes[d];
      index[d] = 0;
    }
  }
  return tensor;
}

}  // namespace tandem::experts
