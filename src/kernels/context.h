// What a kernel call needs besides its tensors. Kernels own nothing: scratch comes from the workspace, threads from
// the pool, both fixed at start. One Context per rank, used by its engine thread only.
#pragma once

#include "device/buffer.h"
#include "device/dtype.h"
#include "device/gpu.h"
#include "device/tensor.h"
#include "device/thread_pool.h"
#include "profile/span.h"

namespace tandem::kernels {

// Which implementation the switch in kernels/<family>.cc takes.
enum class Backend : uint8_t {
  kRef,      // plain loops in f32 on the CPU: oracle and fallback
  kCpu,      // one source per op, compiled per instruction set
  kCuda,     // cuda/, on tensor cores; a build without CUDA has stubs that end the process
  kCudaF32,  // cuda/, activations and sums in f32 throughout: keeps the gap rule (docs/decisions/0015)
};
// On a GPU every view, span and pointer that an op is given lies in the GPU's memory, and the op is ordered on
// Context::stream: nothing has happened yet when it returns. Values that the host would have to read are not checked.
constexpr bool is_cuda(Backend backend) { return backend == Backend::kCuda || backend == Backend::kCudaF32; }
constexpr device::Device device_of(Backend backend) {
  return is_cuda(backend) ? device::Device::kCuda : device::Device::kCpu;
}

// Instruction sets of the kCpu backend, worst to best.
enum class Isa : uint8_t { kAvx2, kAvx512, kAvx512Bf16 };
const char* to_string(Isa isa);
// The best that this CPU runs; kRef is used where not even AVX2 is there.
bool cpu_supports(Isa isa);
Isa best_isa();

struct Context {
  Backend backend = Backend::kRef;
  Isa isa = Isa::kAvx2;  // read by kCpu only
  device::ThreadPool* pool = nullptr;
  device::Workspace* workspace = nullptr;
  profile::Recorder* spans = nullptr;      // of the calling thread; null: operators are not recorded
  const device::Stream* stream = nullptr;  // GPU backends
  device::LaunchLog* launches = nullptr;   // told of each launch; null: nobody asks

  // Type of activations at the inputs of GEMMs and attention: f32 on the CPU, bf16 on kCuda. Everything else (residual
  // stream, router, softmax, combine, logits) is f32 everywhere.
  device::DType act_dtype() const { return backend == Backend::kCuda ? device::DType::kBF16 : device::DType::kF32; }
};

}  // namespace tandem::kernels
