#include "device/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace tandem::device {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kArenaChunk = 4 * kHugePage;

size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

Buffer::Buffer(Device device, size_t bytes) : bytes_(bytes), device_(device) {
  CHECK(device == Device::kCpu);  // GPU memory comes with the CUDA build
  if (bytes == 0) return;
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
    std::free(data_);
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    device_ = other.device_;
  }
  return *this;
}

Buffer::~Buffer() { std::free(data_); }

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
