// Copies between GPUs, or within one, of many pieces of some ten kilobytes: the copy engines take too long to begin
// each.
#include <cuda_runtime.h>

#include <algorithm>

#include "base/check.h"
#include "device/gpu.h"

namespace tandem::device {
namespace {

constexpr int kThreads = 512, kUnroll = 4;
constexpr unsigned kMaxBlocks = 48;  // leaves the rest of the GPU to whoever computes there

__global__ void __launch_bounds__(kThreads) copy_kernel(const CopyPiece* pieces, int count) {
  for (int p = blockIdx.x; p < count; p += gridDim.x) {
    const CopyPiece piece = pieces[p];
    const auto* from = reinterpret_cast<const uint4*>(piece.from);
    auto* to = reinterpret_cast<uint4*>(piece.to);
    const int64_t vectors = piece.bytes / 16;
    for (int64_t first = threadIdx.x; first < vectors; first += int64_t(kThreads) * kUnroll) {
      uint4 held[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (first + u * kThreads < vectors) held[u] = from[first + u * kThreads];
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (first + u * kThreads < vectors) to[first + u * kThreads] = held[u];
      }
    }
  }
}

}  // namespace

void copy_pieces_async(const Stream& stream, std::span<const CopyPiece> pieces) {
  if (pieces.empty()) return;
  const unsigned blocks = std::min<unsigned>(kMaxBlocks, unsigned(pieces.size()));
  copy_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream.handle())>>>(pieces.data(), int(pieces.size()));
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
    check_failed("copy_pieces", 0, cudaGetErrorString(error));
  }
}

}  // namespace tandem::device
