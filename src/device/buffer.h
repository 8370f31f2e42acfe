// Buffer owns aligned memory of a device (64 bytes on the CPU, 256 on a GPU; zero-filled; huge pages advised from 2
// MiB). Move-only. Allocation failure ends the process: sizes are planned before they are allocated.
#pragma once

#include <cstddef>
#include <vector>

#include "device/tensor.h"

namespace tandem::device {

class Buffer {
 public:
  Buffer() = default;
  Buffer(Device device, size_t bytes);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Device device() const { return device_; }

 private:
  void release();

  void* data_ = nullptr;
  size_t bytes_ = 0;
  Device device_ = Device::kCpu;
};

// The same bytes in memory of another device; the buffer itself where it lies there already.
Buffer move_to(Device device, Buffer buffer);
// Copies between any two places, GPU memory included; done when it returns.
void copy_bytes(void* to, const void* from, size_t bytes);

// Many small things that live equally long, side by side on huge pages (a small buffer of its own would lie on small
// ones). Memory comes in chunks and is given back all at once. Zero-filled. One owner thread.
class Arena {
 public:
  explicit Arena(Device device) : device_(device) {}
  std::byte* take(size_t bytes);  // 64-byte aligned

 private:
  const Device device_;
  std::vector<Buffer> chunks_;
  size_t used_ = 0;  // of the last chunk
};

// Scratch memory of one step: take() bumps a pointer, reset() gives everything back. One owner thread.
// The size is fixed at start from the model's limits; running over it is a bug (CHECK), not an allocation.
class Workspace {
 public:
  Workspace(Device device, size_t bytes) : buffer_(device, bytes) {}

  // 64-byte aligned, not cleared.
  void* take(size_t bytes);
  template <class T>
  T* take_array(size_t count) {
    return static_cast<T*>(take(count * sizeof(T)));
  }
  size_t used() const { return used_; }
  size_t peak() const { return peak_; }
  size_t capacity() const { return buffer_.bytes(); }
  void reset(size_t to = 0) {
    CHECK(to <= used_);
    used_ = to;
  }

 private:
  Buffer buffer_;
  size_t used_ = 0;
  size_t peak_ = 0;
};

// Gives back what was taken inside a scope.
class WorkspaceScope {
 public:
  explicit WorkspaceScope(Workspace& workspace) : workspace_(workspace), mark_(workspace.used()) {}
  ~WorkspaceScope() { workspace_.reset(mark_); }
  WorkspaceScope(const WorkspaceScope&) = delete;
  WorkspaceScope& operator=(const WorkspaceScope&) = delete;

 private:
  Workspace& workspace_;
  const size_t mark_;
};

}  // namespace tandem::device
