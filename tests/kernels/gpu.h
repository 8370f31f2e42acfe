// Vectors in a GPU's memory, and a context there. A test that needs a GPU is skipped where there is none.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tests/kernels/support.h"

namespace tandem::kernels::test {

// Empty: a GPU can be used. Else why not.
inline std::string why_no_gpu() {
  const Result<device::GpuInfo> gpu = device::find_gpu(0);
  return gpu ? std::string() : gpu.error().message;
}

#define NEEDS_GPU() \
  if (const std::string why = why_no_gpu(); !why.empty()) GTEST_SKIP() << why

// A copy of host values on the GPU.
template <class T>
class OnGpu {
 public:
  explicit OnGpu(const std::vector<T>& values)
      : size_(values.size()), buffer_(device::Device::kCuda, values.size() * sizeof(T)) {
    device::copy_bytes(buffer_.data(), values.data(), buffer_.bytes());
  }
  T* data() const { return static_cast<T*>(buffer_.data()); }
  std::span<const T> span() const { return {data(), size_}; }
  TensorView view(DType type, std::initializer_list<int64_t> shape) const { return {data(), type, shape}; }
  std::vector<T> back() const {
    std::vector<T> values(size_);
    device::copy_bytes(values.data(), buffer_.data(), buffer_.bytes());
    return values;
  }

 private:
  size_t size_;
  device::Buffer buffer_;
};

struct GpuRig {
  explicit GpuRig(Backend backend, size_t workspace_bytes = size_t(512) << 20)
      : pool(1), workspace(device::Device::kCuda, workspace_bytes), stream(make_stream()) {
    ctx.backend = backend;
    ctx.pool = &pool;
    ctx.workspace = &workspace;
    ctx.stream = &stream;
  }
  static device::Stream make_stream() {
    auto stream = device::Stream::create();
    EXPECT_TRUE(stream.has_value());
    return std::move(*stream);
  }
  // Activations as the backend takes them; `values` becomes what the GPU sees.
  device::Buffer activations(std::vector<float>& values) const {
    const std::vector<uint16_t> bits =
        ctx.act_dtype() == DType::kBF16 ? round_to_bf16(values) : std::vector<uint16_t>();
    const void* from = bits.empty() ? static_cast<const void*>(values.data()) : bits.data();
    device::Buffer buffer(device::Device::kCuda, values.size() * size_of(ctx.act_dtype()));
    device::copy_bytes(buffer.data(), from, buffer.bytes());
    return buffer;
  }
  std::vector<float> floats(const device::Buffer& buffer, DType type) const {
    stream.synchronize();
    if (type == DType::kBF16) {
      std::vector<uint16_t> bits(buffer.bytes() / 2);
      device::copy_bytes(bits.data(), buffer.data(), buffer.bytes());
      return widen(bits);
    }
    std::vector<float> values(buffer.bytes() / 4);
    device::copy_bytes(values.data(), buffer.data(), buffer.bytes());
    return values;
  }
  // Memory full of NaN, so that what is not written shows.
  static device::Buffer poisoned(size_t bytes) {
    device::Buffer buffer(device::Device::kCuda, bytes);
    const std::vector<uint8_t> poison(bytes, 0xff);
    device::copy_bytes(buffer.data(), poison.data(), bytes);
    return buffer;
  }
  // Packed, and its bytes moved to the GPU.
  PackedWeight pack(const std::vector<RawWeight>& stacked) { return place(kernels::pack(ctx.backend, {}, stacked)); }
  PackedWeight place(PackedWeight weight) {
    placed.emplace_back(device::Device::kCuda, weight.bytes());
    weight.place(static_cast<std::byte*>(placed.back().data()));
    return weight;
  }

  device::ThreadPool pool;
  device::Workspace workspace;
  device::Stream stream;
  std::vector<device::Buffer> placed;
  Context ctx;
};

}  // namespace tandem::kernels::test
