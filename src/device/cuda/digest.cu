// The digest of what lies in a GPU's memory: digest_of_words(), each thread some of the words.
#include <cuda_runtime.h>

#include "base/check.h"
#include "device/gpu.h"

namespace tandem::device {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr unsigned kBlocks = 32;  // leaves the rest of the GPU to whoever computes there

__device__ uint64_t mixed(uint64_t word, int64_t index) {
  uint64_t x = word + uint64_t(index + 1) * 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

__global__ void __launch_bounds__(kThreads) digest_kernel(const ulonglong2* pairs, int64_t count, uint64_t* out) {
  __shared__ uint64_t parts[kWarps];
  uint64_t sum = 0;
#pragma unroll 4
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += int64_t(gridDim.x) * kThreads) {
    const ulonglong2 pair = pairs[i];
    sum += mixed(pair.x, 2 * i) + mixed(pair.y, 2 * i + 1);
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int warp = 1; warp < kWarps; ++warp) sum += parts[warp];
  atomicAdd(reinterpret_cast<unsigned long long*>(out), static_cast<unsigned long long>(sum));
}

}  // namespace

void digest_async(const Stream& stream, std::span<const std::byte> bytes, uint64_t* out) {
  CHECK(bytes.size() % sizeof(ulonglong2) == 0);
  fill_async(stream, out, 0, sizeof(uint64_t));
  digest_kernel<<<kBlocks, kThreads, 0, static_cast<cudaStream_t>(stream.handle())>>>(
      reinterpret_cast<const ulonglong2*>(bytes.data()), int64_t(bytes.size() / sizeof(ulonglong2)), out);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
    check_failed("digest", 0, cudaGetErrorString(error));
  }
}

}  // namespace tandem::device
