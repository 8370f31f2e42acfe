// The exchange of one rank on a GPU. Everything is ordered on the rank's stream, so nothing is ever waited for.
#include "base/check.h"
#include "parallel/exchange/seats.h"
#include "parallel/expert_exchange.h"

namespace tandem::parallel {
namespace {

using device::Buffer;
using device::Device;
using device::TensorView;

int64_t max_pairs(const ExchangeShape& shape) { return shape.max_tokens * shape.top_k; }

class GpuExchange final : public ExpertExchange {
 public:
  GpuExchange(const ExchangeShape& shape, kernels::Backend backend, std::shared_ptr<const device::Stream> stream)
      : shape_(shape), stream_(std::move(stream)) {
    CHECK(shape.num_ranks == 1);
    ctx_.backend = backend;
    ctx_.stream = stream_.get();
    for (int32_t i = 0; i < shape.num_channels; ++i) channels_.emplace_back(shape);
  }

  Rank rank() const override { return Rank{0}; }
  const ExchangeShape& shape() const override { return shape_; }

  void post_dispatch(int32_t index, ExchangeTag, ExchangeMode, TensorView x, TensorView slots) override {
    Channel& channel = channels_[size_t(index)];
    CHECK(channel.stage == ExchangeStage::kFree);
    CHECK(x.dim(1) == shape_.hidden && x.dtype() == shape_.dtype && x.dim(0) <= shape_.max_tokens);
    CHECK(slots.num_elements() == x.dim(0) * shape_.top_k);
    channel.stage = ExchangeStage::kDispatched;
    channel.x = x;
    channel.pairs = slots.num_elements();
    kernels::sort_by_slot(ctx_, slots, shape_.slots_per_rank,
                          {channel.slot_begin(), channel.row_token(), static_cast<float*>(channel.results.data()),
                           shape_.hidden, channel.result_of()});
  }

  Result<std::optional<ReceivedRows>> poll_received(int32_t index, TimePoint) override {
    Channel& channel = channels_[size_t(index)];
    CHECK(channel.stage == ExchangeStage::kDispatched);
    channel.stage = ExchangeStage::kReceived;
    ReceivedRows received;
    received.rows = channel.x;
    received.sort = {{channel.slot_begin(), size_t(shape_.slots_per_rank) + 1},
                     {channel.row_token(), size_t(channel.pairs)}};
    received.results = TensorView(channel.results.data(), device::DType::kF32, {channel.pairs, shape_.hidden});
    return std::optional<ReceivedRows>(received);
  }

  void post_results(int32_t index) override {
    Channel& channel = channels_[size_t(index)];
    CHECK(channel.stage == ExchangeStage::kReceived);
    channel.stage = ExchangeStage::kAnswered;
  }

  Result<bool> poll_results(int32_t index, TimePoint, std::span<const float*> rows) override {
    Channel& channel = channels_[size_t(index)];
    CHECK(channel.stage == ExchangeStage::kAnswered);
    CHECK(int64_t(rows.size()) == channel.pairs);
    device::copy_async(*stream_, rows.data(), channel.result_of(), rows.size_bytes());
    channel.stage = ExchangeStage::kFree;
    return true;
  }

  void wait(int32_t, Duration) override {}

 private:
  struct Channel {
    explicit Channel(const ExchangeShape& shape)
        : begin(Device::kCuda, size_t(shape.slots_per_rank + 1) * sizeof(int32_t)),
          tokens(Device::kCuda, size_t(max_pairs(shape)) * sizeof(int32_t)),
          pointers(Device::kCuda, size_t(max_pairs(shape)) * sizeof(float*)),
          results(Device::kCuda, size_t(max_pairs(shape) * shape.hidden) * sizeof(float)) {}
    int32_t* slot_begin() const { return static_cast<int32_t*>(begin.data()); }
    int32_t* row_token() const { return static_cast<int32_t*>(tokens.data()); }
    const float** result_of() const { return static_cast<const float**>(pointers.data()); }

    Buffer begin, tokens, pointers, results;
    TensorView x;
    int64_t pairs = 0;
    ExchangeStage stage = ExchangeStage::kFree;
  };

  const ExchangeShape shape_;
  const std::shared_ptr<const device::Stream> stream_;
  kernels::Context ctx_;
  std::vector<Channel> channels_;
};

}  // namespace

int64_t gpu_exchange_bytes(const ExchangeShape& shape) {
  return (max_pairs(shape) * (shape.hidden * int64_t(sizeof(float)) + 12) + 4 * (shape.slots_per_rank + 1)) *
         shape.num_channels;
}

std::unique_ptr<ExpertExchange> make_gpu_exchange(const ExchangeShape& shape, kernels::Backend backend,
                                                  std::shared_ptr<const device::Stream> stream) {
  return std::make_unique<GpuExchange>(shape, backend, std::move(stream));
}

}  // namespace tandem::parallel
