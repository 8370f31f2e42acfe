// GPU memory between processes of one host, through CUDA's IPC handles.
#include <cudaTypedefs.h>
#include <cuda_runtime.h>
#include <fmt/format.h>

#include <cstring>
#include <fstream>
#include <utility>

#include "device/gpu.h"

namespace tandem::device {
namespace {

// Of this start of this host's kernel: a handle means nothing elsewhere.
std::string boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id;
}

// The driver's function, asked for at run time so that nothing links against a driver. 0: unknown.
size_t bytes_from(void* data) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &function, 3020, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return 0;
  CUdeviceptr base = 0;
  size_t bytes = 0;
  const auto address = reinterpret_cast<CUdeviceptr>(data);
  const auto range = reinterpret_cast<PFN_cuMemGetAddressRange_v3020>(function);
  return range(&base, &bytes, address) == CUDA_SUCCESS && base == address ? bytes : 0;
}

}  // namespace

std::string export_memory(const void* buffer) {
  cudaIpcMemHandle_t handle{};
  if (cudaIpcGetMemHandle(&handle, const_cast<void*>(buffer)) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return {};
  }
  return boot_id() + std::string(reinterpret_cast<const char*>(&handle), sizeof(handle));
}

Result<ImportedMemory> import_memory(const std::string& name) {
  const std::string id = boot_id();
  cudaIpcMemHandle_t handle{};
  if (name.size() != id.size() + sizeof(handle)) return invalid_input("a name of GPU memory has another length");
  if (name.compare(0, id.size(), id) != 0) return not_found("the GPU memory is on another host");
  std::memcpy(&handle, name.data() + id.size(), sizeof(handle));
  void* data = nullptr;
  const cudaError_t error = cudaIpcOpenMemHandle(&data, handle, cudaIpcMemLazyEnablePeerAccess);
  if (error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return not_found(fmt::format("GPU memory of another process: {}", cudaGetErrorString(error)));
  }
  ImportedMemory memory;
  memory.data_ = static_cast<std::byte*>(data);
  memory.bytes_ = bytes_from(data);
  return memory;
}

ImportedMemory::ImportedMemory(ImportedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
ImportedMemory& ImportedMemory::operator=(ImportedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}
ImportedMemory::~ImportedMemory() {
  if (data_ != nullptr) static_cast<void>(cudaIpcCloseMemHandle(data_));
}

}  // namespace tandem::device
