#include "device/gpu.h"

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <utility>

#include "base/check.h"

namespace tandem::device {
namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::string why = fmt::format("{}: {}", what, cudaGetErrorString(error));
  if (const WaitFault& fault = *wait_fault(); fault.exchange != 0) {
    why = fmt::format("rank {} waited {} s for the {} of rank {} in exchange {} ({})", fault.rank, fault.seconds,
                      fault.is_answer ? "results" : "rows", fault.missing_rank, fault.exchange, why);
  }
  check_failed("GPU", 0, why.c_str());
}

cudaStream_t raw(const Stream& stream) { return static_cast<cudaStream_t>(stream.handle()); }

}  // namespace

bool built_with_cuda() { return true; }

Result<GpuInfo> find_gpu(int32_t index) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    return not_found(fmt::format("no usable GPU: {}", cudaGetErrorString(error)));
  }
  if (index >= count) return not_found(fmt::format("GPU {} is not there: this process sees {}", index, count));
  cudaDeviceProp properties{};
  size_t free = 0, total = 0;
  cudaError_t error = cudaGetDeviceProperties(&properties, index);
  if (error == cudaSuccess) error = cudaSetDevice(index);
  if (error == cudaSuccess) error = cudaMemGetInfo(&free, &total);
  if (error != cudaSuccess) return not_found(fmt::format("GPU {}: {}", index, cudaGetErrorString(error)));
  GpuInfo info;
  info.name = properties.name;
  info.index = index;
  info.architecture = properties.major * 10 + properties.minor;
  info.num_multiprocessors = properties.multiProcessorCount;
  info.total_bytes = int64_t(total);
  info.free_bytes = int64_t(free);
  if (info.architecture != TANDEM_CUDA_ARCHITECTURE) {
    return not_found(fmt::format("GPU {} ({}) has compute capability {}.{}, the kernels here are for {}.{}", index,
                                 info.name, properties.major, properties.minor, TANDEM_CUDA_ARCHITECTURE / 10,
                                 TANDEM_CUDA_ARCHITECTURE % 10));
  }
  return info;
}

void use_gpu(int32_t index) { check(cudaSetDevice(index), "cudaSetDevice"); }

Status share_memory(std::span<const int32_t> gpus) {
  int before = 0;
  check(cudaGetDevice(&before), "cudaGetDevice");
  Status status = Ok{};
  for (const int32_t gpu : gpus) {
    use_gpu(gpu);
    for (const int32_t peer : gpus) {
      if (peer == gpu) continue;
      int can = 0;
      check(cudaDeviceCanAccessPeer(&can, gpu, peer), "cudaDeviceCanAccessPeer");
      const cudaError_t error = can != 0 ? cudaDeviceEnablePeerAccess(peer, 0) : cudaErrorPeerAccessUnsupported;
      if (error == cudaSuccess || error == cudaErrorPeerAccessAlreadyEnabled) continue;
      status =
          not_found(fmt::format("GPU {} cannot reach the memory of GPU {}: {}", gpu, peer, cudaGetErrorString(error)));
    }
  }
  static_cast<void>(cudaGetLastError());  // "already enabled" is none
  use_gpu(before);
  return status;
}

// The driver makes pinned memory known to all GPUs under the same address.
WaitFault* wait_fault() {
  static WaitFault* const fault = [] {
    void* memory = nullptr;
    if (cudaHostAlloc(&memory, sizeof(WaitFault), cudaHostAllocPortable) != cudaSuccess) return new WaitFault;
    return new (memory) WaitFault;
  }();
  return fault;
}

Result<Stream> Stream::create(bool goes_first) {
  cudaStream_t handle = nullptr;
  int last = 0, first = 0;
  cudaError_t error = cudaDeviceGetStreamPriorityRange(&last, &first);
  const int priority = goes_first ? first : last;
  if (error == cudaSuccess) error = cudaStreamCreateWithPriority(&handle, cudaStreamNonBlocking, priority);
  if (error != cudaSuccess) return exhausted(fmt::format("GPU stream: {}", cudaGetErrorString(error)));
  Stream stream;
  stream.handle_ = handle;
  return stream;
}
Stream::Stream(Stream&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
Stream& Stream::operator=(Stream&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}
Stream::~Stream() {
  if (handle_ != nullptr) static_cast<void>(cudaStreamDestroy(static_cast<cudaStream_t>(handle_)));
}
void Stream::synchronize() const { check(cudaStreamSynchronize(raw(*this)), "cudaStreamSynchronize"); }

Result<Event> Event::create() {
  cudaEvent_t handle = nullptr;
  const cudaError_t error = cudaEventCreate(&handle);
  if (error != cudaSuccess) return exhausted(fmt::format("GPU event: {}", cudaGetErrorString(error)));
  Event event;
  event.handle_ = handle;
  return event;
}
Event::Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
Event& Event::operator=(Event&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}
Event::~Event() {
  if (handle_ != nullptr) static_cast<void>(cudaEventDestroy(static_cast<cudaEvent_t>(handle_)));
}
void Event::record(const Stream& stream) {
  check(cudaEventRecord(static_cast<cudaEvent_t>(handle_), raw(stream)), "cudaEventRecord");
}
bool Event::is_done() const {
  const cudaError_t error = cudaEventQuery(static_cast<cudaEvent_t>(handle_));
  if (error == cudaErrorNotReady) return false;
  check(error, "cudaEventQuery");
  return true;
}
void Event::synchronize() const {
  check(cudaEventSynchronize(static_cast<cudaEvent_t>(handle_)), "cudaEventSynchronize");
}
float Event::milliseconds_since(const Event& earlier) const {
  float milliseconds = 0;
  check(
      cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(earlier.handle_), static_cast<cudaEvent_t>(handle_)),
      "cudaEventElapsedTime");
  return milliseconds;
}

Graph::Graph(Graph&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}
Graph::~Graph() {
  if (handle_ != nullptr) static_cast<void>(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(handle_)));
}
void Graph::begin_recording(const Stream& stream) {
  check(cudaStreamBeginCapture(raw(stream), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
}
Graph Graph::end_recording(const Stream& stream) {
  cudaGraph_t recorded = nullptr;
  check(cudaStreamEndCapture(raw(stream), &recorded), "cudaStreamEndCapture");
  cudaGraphExec_t ready = nullptr;
  check(cudaGraphInstantiate(&ready, recorded, 0), "cudaGraphInstantiate");
  check(cudaGraphDestroy(recorded), "cudaGraphDestroy");
  Graph graph;
  graph.handle_ = ready;
  return graph;
}
void Graph::launch(const Stream& stream) const {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(handle_), raw(stream)), "cudaGraphLaunch");
}

void copy_async(const Stream& stream, void* to, const void* from, size_t bytes) {
  if (bytes > 0) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, raw(stream)), "cudaMemcpyAsync");
}
void fill_async(const Stream& stream, void* to, int value, size_t bytes) {
  if (bytes > 0) check(cudaMemsetAsync(to, value, bytes, raw(stream)), "cudaMemsetAsync");
}

void* gpu_allocate(size_t bytes) {
  void* data = nullptr;
  check(cudaMalloc(&data, bytes), "cudaMalloc");
  check(cudaMemset(data, 0, bytes), "cudaMemset");
  check(cudaStreamSynchronize(nullptr), "cudaMemset");  // other streams do not wait for it, nor it for them
  return data;
}
int64_t gpu_free_bytes() {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return int64_t(free);
}
void gpu_free(void* data) { static_cast<void>(cudaFree(data)); }
void* gpu_allocate_pinned(size_t bytes) {
  void* data = nullptr;
  check(cudaMallocHost(&data, bytes), "cudaMallocHost");
  __builtin_memset(data, 0, bytes);
  return data;
}
void gpu_free_pinned(void* data) { static_cast<void>(cudaFreeHost(data)); }
// On a machine without a GPU, where nothing lies in a GPU's memory, a plain copy.
void gpu_copy(void* to, const void* from, size_t bytes) {
  const cudaError_t error = cudaMemcpy(to, from, bytes, cudaMemcpyDefault);
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) {
    __builtin_memcpy(to, from, bytes);
    return;
  }
  check(error, "cudaMemcpy");
  // From pageable memory it returns before the bytes have arrived, and other streams do not wait for this one.
  check(cudaStreamSynchronize(nullptr), "cudaMemcpy");
}

}  // namespace tandem::device
