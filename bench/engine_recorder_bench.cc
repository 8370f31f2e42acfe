// What counting experts costs: the time of each hook of a decode step in each recorder mode, times how often the step
// calls it, as a share of the step. The step is a measured one of the same shape and batch on one thread, where there
// is one (the trained model; shape m cut to three layers, so hooks and step have the same layers).
//   engine_recorder_bench [rounds, default 7]
// One JSON line per case; times are processor time of one thread, medians over rounds.
//   count_ns   added to one layer's choice of slots by its counters, per layer; hooks_ns: before and after the forward;
//   step_ns    of the whole step without recorder; share: (count_ns x layers + hooks_ns) / step_ns.
#include <random>

#include "base/log.h"
#include "bench/rank_harness.h"

namespace tandem::bench {
namespace {

using engine::RecorderMode;

struct Shape {
  const char* name;
  int32_t layers, dense, experts, slots, ranks, top_k;
};
constexpr Shape kTiny{"tiny", 6, 1, 32, 32, 1, 6}, kM{"m, 3 layers", 3, 1, 64, 64, 1, 6},
    kR1{"deepseek-r1, 32 ranks", 61, 3, 256, 288, 32, 8};

struct Mode {
  const char* name;
  RecorderMode mode;
  bool records, measures;
};
constexpr Mode kModes[] = {{"counting only (default)", RecorderMode::kStat, false, false},
                           {"stat", RecorderMode::kStat, true, false},
                           {"stat, metrics", RecorderMode::kStat, true, true},
                           {"per_pass", RecorderMode::kPerPass, true, false},
                           {"per_token", RecorderMode::kPerToken, true, false}};

kernels::ExpertWeights small_expert() {
  static const std::vector<float> values(2 * 16 * 16, 1.0F);
  const auto pack = [&](int64_t rows) {
    kernels::RawWeight raw;
    raw.data = values.data();
    raw.rows = rows;
    raw.cols = raw.row_stride = 16;
    return kernels::pack(kernels::Backend::kRef, kernels::Isa::kAvx2, {raw});
  };
  return {pack(32), pack(16)};
}

model::ExpertSlots::Shape slot_shape(const Shape& shape) {
  model::ExpertSlots::Shape result{{}, shape.layers, shape.slots / shape.ranks, 0};
  for (int32_t layer = shape.dense; layer < shape.layers; ++layer) result.expert_layers.push_back(layer);
  return result;
}

class HookBench {
 public:
  HookBench(const Shape& shape, const Mode& mode, int32_t batch)
      : shape_(shape), mode_(mode), batch_(batch), slots_(slot_shape(shape), small_expert()) {
    const auto placement = experts::trivial_placement(shape.layers, shape.experts, shape.slots);
    for (int32_t layer = shape.dense; layer < shape.layers; ++layer) {
      const auto row = placement.layer(layer);
      slots_.set_placement(layer, {row.begin(), row.end()}, {});
    }
    port_ = std::make_unique<engine::ExpertPort>(shape.layers, shape.experts, slots_);
    if (mode.mode != RecorderMode::kStat || mode.measures) {
      port_->open_passes({mode.mode, mode.measures, shape.ranks, shape.top_k});
    }
    if (mode.records && mode.mode == RecorderMode::kStat) port_->start_recording(1000);
    if (mode.records && mode.mode != RecorderMode::kStat) port_->passes()->start(1000, int64_t(512) << 20);
    std::mt19937 random(1);
    for (int32_t i = 0; i < batch * shape.top_k; ++i) ids_.push_back(int32_t(random() % uint32_t(shape.experts)));
    tokens_.assign(size_t(batch), 1);
    sequences_.resize(size_t(batch), {0, 1, 0, nullptr});
  }

  // Before and after the forward. The ring is full, as after a while of serving.
  double hooks_ns(int32_t steps) {
    for (int32_t i = 0; i < 1100; ++i) step();
    const int64_t begin = processor_ns();
    for (int32_t i = 0; i < steps; ++i) step();
    return double(processor_ns() - begin) / steps;
  }
  // One layer's counters, as the model's choice of slots does them.
  double count_ns(int32_t repetitions) {
    std::vector<int32_t> counts(size_t(shape_.experts)), slot_counts(size_t(shape_.slots)), chosen(ids_.size());
    const int64_t begin = processor_ns();
    for (int32_t i = 0; i < repetitions; ++i) {
      for (const int32_t id : ids_) {
        ++counts[size_t(id)];
        if (mode_.measures || mode_.mode != RecorderMode::kStat) ++slot_counts[size_t(id)];
      }
      if (mode_.mode == RecorderMode::kPerToken) std::copy(ids_.begin(), ids_.end(), chosen.begin());
      asm volatile("" : : "r"(counts.data()), "r"(slot_counts.data()), "r"(chosen.data()) : "memory");
    }
    return double(processor_ns() - begin) / repetitions;
  }

 private:
  void step() {
    model::ForwardBatch batch;
    batch.phase = model::Phase::kDecode;
    batch.step = step_++;
    batch.token_ids = batch.positions = tokens_;
    batch.sequences = sequences_;
    port_->before_forward(batch);
    port_->after_forward(batch);
    if (mode_.measures && step_ % 64 == 0) port_->passes()->take_loads();
  }

  const Shape shape_;
  const Mode mode_;
  const int32_t batch_;
  model::ExpertSlots slots_;
  std::unique_ptr<engine::ExpertPort> port_;
  std::vector<int32_t> ids_, tokens_;
  std::vector<kernels::SequenceSpan> sequences_;
  uint64_t step_ = 0;
};

void report(const Shape& shape, int32_t batch, int32_t rounds, double step_ns) {
  for (const Mode& mode : kModes) {
    HookBench bench(shape, mode, batch);
    std::vector<double> hooks, counts;
    for (int32_t i = 0; i < rounds; ++i) {
      hooks.push_back(bench.hooks_ns(1000));
      counts.push_back(bench.count_ns(2000));
    }
    const double all = median(hooks) + median(counts) * (shape.layers - shape.dense);
    fmt::print(
        "{{\"case\": \"engine/recorder/{}/sequences={}\", \"mode\": \"{}\", \"count_ns\": {:.0f}, \"hooks_ns\": "
        "{:.0f}, "
        "\"all_ns\": {:.0f}, \"step_ns\": {:.0f}, \"share_percent\": {}}}\n",
        shape.name, batch, mode.name, median(counts), median(hooks), all, step_ns,
        step_ns > 0 ? fmt::format("{:.3f}", 100 * all / step_ns) : "null");
    std::fflush(stdout);
  }
}

double step_ns(RankServer& server, int32_t batch, int32_t rounds) {
  const std::vector<std::vector<int32_t>> prompts(size_t(batch), std::vector<int32_t>(64, 7));
  std::vector<double> times;
  for (int32_t i = 0; i < rounds; ++i) times.push_back(1e9 * batch / server.decode_rate(prompts, 64));
  // The fastest: what a step takes when nothing else runs, so that shares are not flattered.
  return *std::min_element(times.begin(), times.end());
}

int run(int32_t rounds) {
  for (const Shape& shape : {kTiny, kM}) {
    RankServer::Options options;
    options.config = shape.name[0] == 'm' ? "m" : "tiny";
    options.layers = shape.layers;
    RankServer server(options);
    for (const int32_t batch : {1, 32}) report(shape, batch, rounds, step_ns(server, batch, rounds));
  }
  for (const int32_t batch : {1, 32, 128}) report(kR1, batch, rounds, 0);
  return 0;
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  tandem::log::configure(tandem::log::Level::kError, false);
  return tandem::bench::run(argc > 1 ? std::max(1, std::atoi(argv[1])) : 7);
}
