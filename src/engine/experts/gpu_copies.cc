// Copies of experts between the memories of a process's GPUs. Each rank has a stream that receives: what is copied to
// it and the digest of it run there in order, beside the model's steps and behind them where both want the GPU. Nobody
// waits for the stream; an event says when the digest is there.
#include <memory>
#include <utility>
#include <vector>

#include "base/check.h"
#include "device/buffer.h"
#include "device/gpu.h"
#include "engine/expert_balancer.h"

namespace tandem::engine {
namespace {

using device::Buffer;
using device::Device;

// A stream that receives, on one GPU.
struct Receiver {
  int32_t gpu = 0;
  device::Stream stream;
  device::Event digested;
  Buffer digest, answer;  // 8 bytes of the GPU, and where they are seen
  bool is_asked = false;
};

// Two digests of one rank are never told apart: a new one is begun behind the old one, in the same memory, and the
// event is recorded again, so that what take_digest() sees is the last one's.
class GpuCopies final : public PlaceCopies {
 public:
  explicit GpuCopies(std::vector<Receiver> receivers) : receivers_(std::move(receivers)) {}
  ~GpuCopies() override {
    for (const Receiver& receiver : receivers_) {
      device::use_gpu(receiver.gpu);
      receiver.stream.synchronize();
    }
  }

  Status copy(int32_t to_rank, std::span<const std::byte> from, std::span<std::byte> to) override {
    CHECK(from.size() == to.size());
    device::copy_async(use(to_rank).stream, to.data(), from.data(), from.size());
    return Ok{};
  }

  void begin_digest(int32_t rank, std::span<const std::byte> place) override {
    Receiver& receiver = use(rank);
    device::digest_async(receiver.stream, place, static_cast<uint64_t*>(receiver.digest.data()));
    device::copy_async(receiver.stream, receiver.answer.data(), receiver.digest.data(), sizeof(uint64_t));
    receiver.digested.record(receiver.stream);
    receiver.is_asked = true;
  }

  std::optional<uint64_t> take_digest(int32_t rank) override {
    const Receiver& receiver = use(rank);
    CHECK(receiver.is_asked);
    if (!receiver.digested.is_done()) return std::nullopt;
    return *static_cast<const volatile uint64_t*>(receiver.answer.data());
  }

 private:
  // Kernels and events are of the calling thread's GPU.
  Receiver& use(int32_t rank) {
    Receiver& receiver = receivers_[size_t(rank)];
    device::use_gpu(receiver.gpu);
    return receiver;
  }

  std::vector<Receiver> receivers_;  // by rank
};

}  // namespace

Result<std::shared_ptr<PlaceCopies>> make_gpu_copies(std::span<const int32_t> gpu_of_rank) {
  std::vector<Receiver> receivers;
  for (const int32_t gpu : gpu_of_rank) {
    device::use_gpu(gpu);
    Receiver& receiver = receivers.emplace_back();
    receiver.gpu = gpu;
    ASSIGN_OR_RETURN(receiver.stream, device::Stream::create());
    ASSIGN_OR_RETURN(receiver.digested, device::Event::create());
    receiver.digest = Buffer(Device::kCuda, sizeof(uint64_t));
    receiver.answer = Buffer(Device::kPinned, sizeof(uint64_t));
  }
  return std::shared_ptr<PlaceCopies>(std::make_shared<GpuCopies>(std::move(receivers)));
}

}  // namespace tandem::engine
