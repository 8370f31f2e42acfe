#include "device/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "device/gpu.h"

namespace tandem::device {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kArenaChunk = 4 * kHugePage;

size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

Buffer::Buffer(Device device, size_t bytes) : bytes_(bytes), device_(device) {
  if (bytes == 0) return;
  if (device != Device::kCpu) {
    data_ = device == Device::kCuda ? gpu_allocate(bytes) : gpu_allocate_pinned(bytes);
    return;
  }
  const bool huge = bytes >= kHugePage;
  const size_t alignment = huge ? kHugePage : kLine;
  const size_t allocated = round_up(bytes, kLine);
  data_ = std::aligned_alloc(alignment, round_up(allocated, alignment));
  CHECK(data_ != nullptr);
  // Advice only: a kernel without huge pages serves small ones.
  if (huge) static_cast<void>(madvise(data_, round_up(allocated, alignment), MADV_HUGEPAGE));
  std::memset(data_, 0, allocated);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)), device_(other.device_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    release();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    device_ = other.device_;
  }
  return *this;
}

Buffer::~Buffer() { release(); }

void Buffer::release() {
  if (data_ == nullptr) return;
  switch (device_) {
    case Device::kCpu: return std::free(data_);
    case Device::kCuda: return gpu_free(data_);
    case Device::kPinned: return gpu_free_pinned(data_);
  }
}

Buffer move_to(Device device, Buffer buffer) {
  if (buffer.device() == device) return buffer;
  Buffer moved(device, buffer.bytes());
  copy_bytes(moved.data(), buffer.data(), buffer.bytes());
  return moved;
}

void copy_bytes(void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  built_with_cuda() ? gpu_copy(to, from, bytes) : static_cast<void>(std::memcpy(to, from, bytes));
}

std::byte* Arena::take(size_t bytes) {
  const size_t rounded = round_up(bytes, kLine);
  if (chunks_.empty() || rounded > chunks_.back().bytes() - used_) {
    chunks_.emplace_back(device_, std::max(kArenaChunk, rounded));
    used_ = 0;
  }
  std::byte* result = static_cast<std::byte*>(chunks_.back().data()) + used_;
  used_ += rounded;
  return result;
}

void* Workspace::take(size_t bytes) {
  const size_t rounded = round_up(bytes, kLine);
  CHECK(rounded <= buffer_.bytes() - used_);
  void* result = static_cast<char*>(buffer_.data()) + used_;
  used_ += rounded;
  if (used_ > peak_) peak_ = used_;
  return result;
}

}  // namespace tandem::device
