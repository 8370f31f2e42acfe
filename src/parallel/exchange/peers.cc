// The exchange of several GPUs of one node, by kernels/peer_exchange.h. Everything is ordered on the ranks' streams, so
// the host never waits; what a dead peer leaves waiting ends with a fault of the GPU.
#include <fmt/format.h>

#include "base/check.h"
#include "kernels/peer_exchange.h"
#include "parallel/exchange/seats.h"
#include "parallel/expert_exchange.h"

namespace tandem::parallel {
namespace {

using device::Buffer;
using device::Device;
using device::TensorView;
using kernels::PeerBox;
using kernels::PeerGroup;

bool sends_fp8(const ExchangeShape& shape) { return shape.payload == ExchangePayload::kFp8; }
int64_t own_pairs(const ExchangeShape& shape) { return shape.max_tokens * shape.top_k; }
int64_t all_pairs(const ExchangeShape& shape) { return own_pairs(shape) * shape.num_ranks; }

// Memory of one rank and channel, on the GPU that is in use when it is made.
struct PeerMemory {
  explicit PeerMemory(const ExchangeShape& shape)
      : rows(Device::kCuda, size_t(shape.max_tokens * shape.num_ranks * payload_row_bytes(shape))),
        slots(Device::kCuda, size_t(all_pairs(shape)) * sizeof(int32_t)),
        counters(Device::kCuda, size_t(3 * shape.num_ranks + 2) * sizeof(uint64_t)),
        result_of(Device::kCuda, size_t(own_pairs(shape)) * sizeof(float*)),
        own_slots(Device::kCuda, size_t(all_pairs(shape)) * sizeof(int32_t)),
        slot_begin(Device::kCuda, size_t(shape.slots_per_rank + 1) * sizeof(int32_t)),
        row_token(Device::kCuda, size_t(all_pairs(shape)) * sizeof(int32_t)),
        sorted_results(Device::kCuda, size_t(all_pairs(shape)) * sizeof(float*)),
        results(Device::kCuda, size_t(all_pairs(shape) * shape.hidden) * sizeof(float)) {
    // A pair without a slot is read from somewhere, too.
    const std::vector<const float*> first(size_t(own_pairs(shape)), static_cast<const float*>(results.data()));
    device::copy_bytes(result_of.data(), first.data(), result_of.bytes());
  }
  uint64_t* counter(int32_t i) const { return static_cast<uint64_t*>(counters.data()) + i; }
  PeerBox box(int32_t num_ranks) const {
    PeerBox box;
    box.rows = static_cast<std::byte*>(rows.data());
    box.slots = static_cast<int32_t*>(slots.data());
    box.dispatched = counter(0);
    box.answered = counter(num_ranks);
    box.num_tokens = reinterpret_cast<int64_t*>(counter(2 * num_ranks));
    box.result_of = static_cast<const float**>(result_of.data());
    return box;
  }

  Buffer rows, slots, counters, result_of;  // written by the peers, results read by them
  Buffer own_slots, slot_begin, row_token, sorted_results, results;
};

using PeerMemories = std::vector<std::vector<std::unique_ptr<PeerMemory>>>;  // [rank][channel]

class PeerExchange final : public ExpertExchange {
 public:
  PeerExchange(const ExchangeShape& shape, Rank rank, const PeerSeat& seat, kernels::Backend backend,
               std::shared_ptr<const PeerMemories> memories)
      : shape_(shape), rank_(rank), stream_(seat.stream), memories_(std::move(memories)) {
    ctx_.backend = backend;
    ctx_.stream = stream_.get();
    for (int32_t i = 0; i < shape.num_channels; ++i) {
      Channel& channel = channels_.emplace_back();
      channel.memory = (*memories_)[size_t(rank.value)][size_t(i)].get();
      PeerGroup& group = channel.group;
      for (int32_t r = 0; r < shape.num_ranks; ++r) {
        group.boxes[r] = (*memories_)[size_t(r)][size_t(i)]->box(shape.num_ranks);
      }
      group.rank = rank.value;
      group.num_ranks = shape.num_ranks;
      group.slots_per_rank = shape.slots_per_rank;
      group.top_k = shape.top_k;
      group.row_bytes = payload_row_bytes(shape);
      group.fp8_width = sends_fp8(shape) ? shape.hidden : 0;
      group.exchanges = channel.memory->counter(3 * shape.num_ranks);
      group.blocks_done = reinterpret_cast<uint32_t*>(channel.memory->counter(3 * shape.num_ranks + 1));
      group.fault = device::wait_fault();
      group.deadline_s = int32_t(seconds(seat.deadline));
    }
  }

  Rank rank() const override { return rank_; }
  const ExchangeShape& shape() const override { return shape_; }

  void post_dispatch(int32_t index, ExchangeTag, ExchangeMode mode, TensorView x, TensorView slots) override {
    Channel& channel = channels_[size_t(index)];
    CHECK(channel.stage == ExchangeStage::kFree);
    channel.stage = ExchangeStage::kDispatched;
    channel.group.stride = mode == ExchangeMode::kLowLatency ? shape_.max_low_latency_tokens : shape_.max_tokens;
    CHECK(x.dtype() == shape_.dtype && x.dim(0) <= channel.group.stride);
    channel.pairs = slots.num_elements();
    kernels::peer_dispatch(ctx_, channel.group, x, slots);
  }

  Result<std::optional<ReceivedRows>> poll_received(int32_t index, TimePoint) override {
    Channel& channel = channels_[size_t(index)];
    CHECK(channel.stage == ExchangeStage::kDispatched);
    channel.stage = ExchangeStage::kReceived;
    const PeerMemory& memory = *channel.memory;
    kernels::peer_receive(ctx_, channel.group, channel.own_slots());
    auto* begin = static_cast<int32_t*>(memory.slot_begin.data());
    auto* tokens = static_cast<int32_t*>(memory.row_token.data());
    auto* results = static_cast<float*>(memory.results.data());
    kernels::sort_by_slot(ctx_, channel.own_slots(), shape_.slots_per_rank,
                          {begin, tokens, results, shape_.hidden, channel.sorted_results()});
    const int64_t rows = shape_.num_ranks * channel.group.stride, pairs = rows * shape_.top_k;
    ReceivedRows received;
    received.rows = sends_fp8(shape_)
                        ? TensorView(memory.rows.data(), device::DType::kF8E4M3, {rows, payload_row_bytes(shape_)})
                        : TensorView(memory.rows.data(), shape_.dtype, {rows, shape_.hidden});
    received.sort = {{begin, size_t(shape_.slots_per_rank) + 1}, {tokens, size_t(pairs)}};
    received.results = TensorView(results, device::DType::kF32, {pairs, shape_.hidden});
    return std::optional<ReceivedRows>(received);
  }

  void post_results(int32_t index) override {
    Channel& channel = channels_[size_t(index)];
    CHECK(channel.stage == ExchangeStage::kReceived);
    channel.stage = ExchangeStage::kAnswered;
    kernels::peer_answer(ctx_, channel.group, channel.own_slots(), channel.sorted_results());
  }

  Result<bool> poll_results(int32_t index, TimePoint, std::span<const float*> rows) override {
    Channel& channel = channels_[size_t(index)];
    CHECK(channel.stage == ExchangeStage::kAnswered);
    CHECK(int64_t(rows.size()) == channel.pairs);
    channel.stage = ExchangeStage::kFree;
    kernels::peer_collect(ctx_, channel.group, rows);
    return true;
  }

  void wait(int32_t, Duration) override {}

 private:
  struct Channel {
    const PeerMemory* memory = nullptr;
    PeerGroup group;
    int64_t pairs = 0;
    ExchangeStage stage = ExchangeStage::kFree;

    TensorView own_slots() const {
      return {memory->own_slots.data(), device::DType::kI32, {group.num_ranks * group.stride, group.top_k}};
    }
    const float** sorted_results() const { return static_cast<const float**>(memory->sorted_results.data()); }
  };

  const ExchangeShape shape_;
  const Rank rank_;
  const std::shared_ptr<const device::Stream> stream_;
  const std::shared_ptr<const PeerMemories> memories_;
  kernels::Context ctx_;
  std::vector<Channel> channels_;
};

}  // namespace

int64_t peer_exchange_bytes(const ExchangeShape& shape) {
  const int64_t pairs = all_pairs(shape);
  const int64_t rows = shape.max_tokens * shape.num_ranks * payload_row_bytes(shape);
  const int64_t lists = pairs * (3 * int64_t(sizeof(int32_t)) + int64_t(sizeof(float*)));
  return shape.num_channels * (rows + lists + pairs * shape.hidden * int64_t(sizeof(float)) + (1 << 12));
}

Result<std::vector<std::unique_ptr<ExpertExchange>>> make_peer_exchanges(const ExchangeShape& shape,
                                                                         kernels::Backend backend,
                                                                         std::span<const PeerSeat> seats) {
  CHECK(int32_t(seats.size()) == shape.num_ranks);
  if (shape.num_ranks > kernels::kMaxPeers) {
    return invalid_input(
        fmt::format("{} GPUs of one node exchange rows at most, wanted {}", kernels::kMaxPeers, shape.num_ranks));
  }
  if (payload_row_bytes(shape) % 16 != 0) {
    return invalid_input(fmt::format("rows of {} bytes: GPUs exchange multiples of 16", payload_row_bytes(shape)));
  }
  if (sends_fp8(shape) && (shape.dtype != device::DType::kBF16 || shape.hidden % 16 != 0)) {
    return invalid_input(fmt::format("rows of {} {}: GPUs exchange multiples of 16 bf16 numbers in FP8", shape.hidden,
                                     to_string(shape.dtype)));
  }
  std::vector<int32_t> gpus;
  for (const PeerSeat& seat : seats) gpus.push_back(seat.gpu);
  RETURN_IF_ERROR(device::share_memory(gpus));
  auto memories = std::make_shared<PeerMemories>();
  for (const PeerSeat& seat : seats) {
    device::use_gpu(seat.gpu);
    std::vector<std::unique_ptr<PeerMemory>>& channels = memories->emplace_back();
    for (int32_t i = 0; i < shape.num_channels; ++i) channels.push_back(std::make_unique<PeerMemory>(shape));
  }
  std::vector<std::unique_ptr<ExpertExchange>> exchanges;
  for (size_t r = 0; r < seats.size(); ++r) {
    exchanges.push_back(std::make_unique<PeerExchange>(shape, Rank{int32_t(r)}, seats[r], backend, memories));
  }
  return exchanges;
}

}  // namespace tandem::parallel
