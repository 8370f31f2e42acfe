// Rows to experts and back between the GPUs of this node, a thread and a stream for each: median of several rounds,
// each a recording of many exchanges, so that the host is not in the way.
//   parallel_gpu_exchange_bench [tokens of a rank] [hidden] [top_k] [bf16|fp8|both]      default: 128 7168 8 both
// dispatch: rows and slots go out, all ranks' are there and sorted. combine: answers, their rows read from the peers
// and summed. The experts between them are left out.
#include <fmt/format.h>

#include <algorithm>
#include <barrier>
#include <random>
#include <string_view>
#include <thread>

#include "base/check.h"
#include "kernels/moe.h"
#include "parallel/expert_exchange.h"

namespace tandem::bench {
namespace {

using device::DType;
using device::TensorView;

constexpr int kRepeats = 50, kRounds = 9;

struct Sizes {
  int64_t tokens = 128, hidden = 7168;
  int32_t top_k = 8, num_ranks = 2, slots_per_rank = 128;
  parallel::ExchangePayload payload = parallel::ExchangePayload::kAsTheyAre;
};

struct RankBench {
  RankBench(const Sizes& s, int32_t rank)
      : x(device::Device::kCuda, size_t(s.tokens * s.hidden) * 2),
        slots(device::Device::kCuda, size_t(s.tokens * s.top_k) * sizeof(int32_t)),
        weights(device::Device::kCuda, size_t(s.tokens * s.top_k) * sizeof(float)),
        out(device::Device::kCuda, size_t(s.tokens * s.hidden) * sizeof(float)),
        rows(device::Device::kCuda, size_t(s.tokens * s.top_k) * sizeof(float*)) {
    std::mt19937 random(static_cast<uint32_t>(rank) + 1);
    std::vector<int32_t> all(size_t(s.num_ranks * s.slots_per_rank)), chosen;
    for (size_t i = 0; i < all.size(); ++i) all[i] = int32_t(i);
    for (int64_t t = 0; t < s.tokens; ++t) {
      std::shuffle(all.begin(), all.end(), random);
      chosen.insert(chosen.end(), all.begin(), all.begin() + s.top_k);
    }
    device::copy_bytes(slots.data(), chosen.data(), slots.bytes());
    std::vector<uint16_t> values(size_t(s.tokens * s.hidden));
    std::normal_distribution<float> normal;
    for (uint16_t& v : values) v = device::bf16_from_f32(normal(random));
    device::copy_bytes(x.data(), values.data(), x.bytes());
  }
  device::Buffer x, slots, weights, out, rows;
};

class Bench {
 public:
  explicit Bench(const Sizes& sizes) : s_(sizes), together_(sizes.num_ranks) {}

  Status run() {
    parallel::ExchangeShape shape;
    shape.num_ranks = s_.num_ranks;
    shape.slots_per_rank = s_.slots_per_rank;
    shape.top_k = s_.top_k;
    shape.hidden = s_.hidden;
    shape.max_tokens = shape.max_low_latency_tokens = s_.tokens;
    shape.payload = s_.payload;
    std::vector<parallel::PeerSeat> seats;
    for (int32_t r = 0; r < s_.num_ranks; ++r) {
      ASSIGN_OR_RETURN(const device::GpuInfo gpu, device::find_gpu(r));
      if (r == 0)
        fmt::print("{} x {}, {} tokens of {} a rank, top-{}, rows of {} bytes\n", s_.num_ranks, gpu.name, s_.tokens,
                   s_.hidden, s_.top_k, parallel::payload_row_bytes(shape));
      ASSIGN_OR_RETURN(device::Stream stream, device::Stream::create());
      seats.push_back({r, std::make_shared<const device::Stream>(std::move(stream)), std::chrono::seconds(20)});
    }
    ASSIGN_OR_RETURN(exchanges_, parallel::make_peer_exchanges(shape, kernels::Backend::kCuda, seats));
    std::vector<std::jthread> threads;
    for (int32_t r = 0; r < s_.num_ranks; ++r) threads.emplace_back([&, r] { measure(r, *seats[size_t(r)].stream); });
    threads.clear();
    return Ok{};
  }

 private:
  void measure(int32_t rank, const device::Stream& stream) {
    device::use_gpu(rank);
    const RankBench data(s_, rank);
    kernels::Context ctx;
    ctx.backend = kernels::Backend::kCuda;
    ctx.stream = &stream;
    parallel::ExpertExchange& exchange = *exchanges_[size_t(rank)];
    const TensorView x(data.x.data(), DType::kBF16, {s_.tokens, s_.hidden});
    const TensorView slots(data.slots.data(), DType::kI32, {s_.tokens, s_.top_k});
    const TensorView weights(data.weights.data(), DType::kF32, {s_.tokens, s_.top_k});
    const TensorView out(data.out.data(), DType::kF32, {s_.tokens, s_.hidden});
    const std::span<const float*> rows(static_cast<const float**>(data.rows.data()), size_t(s_.tokens * s_.top_k));
    const auto dispatch = [&] {
      exchange.post_dispatch(0, {}, parallel::ExchangeMode::kLowLatency, x, slots);
      CHECK(exchange.poll_received(0, {}).has_value());
    };
    const auto combine = [&] {
      exchange.post_results(0);
      CHECK(exchange.poll_results(0, {}, rows).has_value());
      kernels::combine(ctx, rows, weights, out);
    };
    dispatch();
    combine();
    device::Graph::begin_recording(stream);
    for (int i = 0; i < kRepeats; ++i) {
      dispatch();
      combine();
    }
    const device::Graph both = device::Graph::end_recording(stream);
    device::Graph::begin_recording(stream);
    for (int i = 0; i < kRepeats; ++i) kernels::combine(ctx, rows, weights, out);
    const device::Graph sums = device::Graph::end_recording(stream);
    const double round_us = time(both, stream), sum_us = time(sums, stream);
    // A dispatch that is timed alone would run into the next one before it is answered; so combine is timed as the
    // rest.
    device::Graph::begin_recording(stream);
    for (int i = 0; i < kRepeats; ++i) {
      dispatch();
      exchange.post_results(0);
      CHECK(exchange.poll_results(0, {}, rows).has_value());
    }
    const device::Graph without_sums = device::Graph::end_recording(stream);
    const double bare_us = time(without_sums, stream);
    if (rank != 0) return;
    fmt::print("dispatch, answer and collect without reading rows: {:.1f} us\n", bare_us);
    fmt::print("dispatch and combine: {:.1f} us, of which reading and summing {:.1f} us alone: {:.1f} us\n", round_us,
               round_us - bare_us, sum_us);
  }

  double time(const device::Graph& graph, const device::Stream& stream) {
    auto begin = device::Event::create(), end = device::Event::create();
    CHECK(begin.has_value() && end.has_value());
    std::vector<double> us;
    for (int i = 0; i < kRounds; ++i) {
      together_.arrive_and_wait();
      begin->record(stream);
      graph.launch(stream);
      end->record(stream);
      stream.synchronize();
      us.push_back(double(end->milliseconds_since(*begin)) * 1e3 / kRepeats);
    }
    std::sort(us.begin(), us.end());
    return us[us.size() / 2];
  }

  const Sizes s_;
  std::barrier<> together_;
  std::vector<std::unique_ptr<parallel::ExpertExchange>> exchanges_;
};

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  tandem::bench::Sizes sizes;
  if (argc > 1) sizes.tokens = std::atoll(argv[1]);
  if (argc > 2) sizes.hidden = std::atoll(argv[2]);
  if (argc > 3) sizes.top_k = std::atoi(argv[3]);
  using tandem::parallel::ExchangePayload;
  const std::string_view which = argc > 4 ? argv[4] : "both";
  for (const ExchangePayload payload : {ExchangePayload::kAsTheyAre, ExchangePayload::kFp8}) {
    if (which == (payload == ExchangePayload::kFp8 ? "bf16" : "fp8")) continue;
    sizes.payload = payload;
    const tandem::Status status = tandem::bench::Bench(sizes).run();
    if (status) continue;
    fmt::print(stderr, "{}\n", status.error().message);
    return 1;
  }
  return 0;
}
