// TensorView borrows memory and knows its shape; Buffer owns memory. No math here. Views are values; a view never
// outlives the Buffer, checkpoint mapping or workspace it points into.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "base/check.h"
#include "device/dtype.h"

namespace tandem::device {

// kPinned: the CPU's memory, where a GPU copies to and from without a detour.
enum class Device : uint8_t { kCpu, kCuda, kPinned };

// Row-major and contiguous, up to four dimensions.
class TensorView {
 public:
  TensorView() = default;
  TensorView(void* data, DType dtype, std::initializer_list<int64_t> shape, Device device = Device::kCpu)
      : data_(data), dtype_(dtype), device_(device), rank_(int8_t(shape.size())) {
    CHECK(shape.size() <= 4);
    size_t i = 0;
    for (int64_t extent : shape) shape_[i++] = extent;
  }

  void* data() const { return data_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  int rank() const { return rank_; }
  int64_t dim(int i) const {
    DCHECK(i < rank_);
    return shape_[size_t(i)];
  }
  int64_t num_elements() const {
    int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= shape_[size_t(i)];
    return n;
  }
  size_t bytes() const { return size_t(num_elements()) * size_of(dtype_); }

 private:
  void* data_ = nullptr;
  DType dtype_ = DType::kF32;
  Device device_ = Device::kCpu;
  int8_t rank_ = 0;
  std::array<int64_t, 4> shape_{};
};

}  // namespace tandem::device
