// tandem bench_rank: one rank of a large expert-parallel group on one GPU, the others emulated. Weights are invented,
// but shapes, layers and row counts are the real ones: tokens that would leave for other ranks' experts take this
// rank's.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>

#include "app/commands.h"
#include "app/flags.h"
#include "app/machine.h"
#include "experts/placement.h"
#include "kernels/sample.h"
#include "kv/storage.h"
#include "model/model.h"
#include "parallel/expert_exchange.h"

namespace tandem::app {
namespace {

constexpr FlagKind kString = FlagKind::kString, kInt = FlagKind::kInt, kSwitch = FlagKind::kSwitch;
constexpr FlagSupport kWorks = FlagSupport::kWorks;
constexpr Flag kFlags[] = {
    {"--model-path,--model", kString, nullptr, nullptr, kWorks, "folder with config.json; weights are invented"},
    {"--json-model-override-args", kString, "{}", nullptr, kWorks, "JSON object whose keys replace config.json's"},
    {"--emulate-ep-size", kInt, "72", nullptr, kWorks, "ranks of the emulated group"},
    {"--emulate-ep-rank", kInt, "0", nullptr, kWorks, "which of them this is"},
    {"--ep-num-redundant-experts", kInt, "32", nullptr, kWorks, "experts that the group holds twice"},
    {"--phase", kString, "decode", "decode|prefill", kWorks, "what a step is"},
    {"--batch-size", kInt, "256", nullptr, kWorks, "decode: requests; prefill: sequences, one a step"},
    {"--context", kInt, "2050", nullptr, kWorks, "decode: tokens before each step; prefill: tokens of a sequence"},
    {"--steps", kInt, "200", nullptr, kWorks, "measured steps, after ten others"},
    {"--page-size", kInt, "64", nullptr, kWorks, "tokens of a cache block"},
    {"--kernel-backend", kString, "tensor", "f32|tensor", kWorks, "kernels"},
    {"--disable-cuda-graph", kSwitch, nullptr, nullptr, kWorks, "send decode steps op by op"},
};

constexpr int kWarmUp = 10;
constexpr size_t kMaxLaunches = 20000;  // of one step

struct Plan {
  model::LoadOptions load;
  Rank rank;
  bool decode = true, records = true;
  int64_t batch = 0, context = 0, steps = 0;
  int32_t block_tokens = 64;
  int64_t blocks_each() const { return (load.limits.max_context + block_tokens - 1) / block_tokens; }
};

Result<Plan> make_plan(const FlagValues& flags) {
  if (!flags.has("model_path")) return invalid_input("--model-path is missing");
  Plan plan;
  plan.decode = flags.text("phase") == "decode";
  plan.records = plan.decode && !flags.enabled("disable_cuda_graph");
  plan.batch = flags.integer("batch_size");
  plan.context = flags.integer("context");
  plan.steps = flags.integer("steps");
  plan.block_tokens = int32_t(flags.integer("page_size"));
  plan.rank = Rank{int32_t(flags.integer("emulate_ep_rank"))};
  const int64_t ranks = flags.integer("emulate_ep_size");
  if (plan.batch < 1 || plan.context < 1 || plan.steps < 1 || plan.block_tokens < 1 || ranks < 1 ||
      plan.rank.value < 0 || plan.rank.value >= ranks) {
    return invalid_input("sizes must be positive, and --emulate-ep-rank below --emulate-ep-size");
  }
  model::LoadOptions& load = plan.load;
  load.directory = flags.text("model_path");
  load.config_overrides = flags.text("json_model_override_args");
  load.dummy_weights = load.loop_back = true;
  load.backend = flags.text("kernel_backend") == "f32" ? kernels::Backend::kCudaF32 : kernels::Backend::kCuda;
  load.num_threads = num_usable_cpus();
  const int64_t tokens = plan.decode ? plan.batch : plan.context;
  const int64_t longest = plan.decode ? plan.context + plan.steps + kWarmUp + 2 : plan.context;
  load.limits = {tokens, plan.decode ? plan.batch : 1, plan.decode ? plan.batch : 1, longest};
  ASSIGN_OR_RETURN(const model::ModelConfig config, model::load_config(load.directory, load.config_overrides));
  const int64_t slots = config.num_routed_experts + flags.integer("ep_num_redundant_experts");
  if (slots % ranks != 0) {
    return invalid_input(fmt::format("{} experts and {} redundant ones do not divide over {} ranks",
                                     config.num_routed_experts, slots - config.num_routed_experts, ranks));
  }
  load.experts.topology.num_ranks = int32_t(ranks);
  load.experts.topology.slots_per_rank = int32_t(slots / ranks);
  return plan;
}

// A model alone on its GPU, with a cache that pretends to hold what came before.
class EmulatedRank {
 public:
  static Result<std::unique_ptr<EmulatedRank>> create(Plan plan);

  // One step; its GPU work has been done when it returns. Milliseconds of it that the host spent on sending it off.
  Result<double> step();
  // Microseconds by kernel of one more step.
  Result<std::vector<device::LaunchLog::Total>> log_step();

 private:
  explicit EmulatedRank(Plan plan) : plan_(std::move(plan)), log_(kMaxLaunches) {}
  void fill_batch();

  Plan plan_;
  device::LaunchLog log_;
  std::unique_ptr<model::Model> model_;
  std::optional<kv::KvStorage> cache_;
  device::Buffer logits_;
  std::vector<int32_t> tokens_, positions_, slots_, rows_, blocks_;
  std::vector<kernels::SequenceSpan> sequences_;
  std::vector<kernels::SampleResult> drawn_;
  std::vector<kernels::SampleParams> params_;
  device::ThreadPool pool_{1};
  std::optional<device::Workspace> workspace_;
  int64_t steps_ = 0;
};

Result<std::unique_ptr<EmulatedRank>> EmulatedRank::create(Plan plan) {
  std::unique_ptr<EmulatedRank> self(new EmulatedRank(std::move(plan)));
  static const SystemClock clock;
  model::LoadOptions& load = self->plan_.load;
  load.launches = &self->log_;
  ASSIGN_OR_RETURN(const model::ModelConfig config, model::load_config(load.directory, load.config_overrides));
  ASSIGN_OR_RETURN(device::Stream stream, device::Stream::create());
  std::vector<model::RankOptions> ranks(1);
  ranks[0].rank = self->plan_.rank;
  ranks[0].clock = &clock;
  ranks[0].stream = std::make_shared<const device::Stream>(std::move(stream));
  parallel::ExchangeShape shape = model::exchange_shape(config, load);
  shape.num_ranks = 1;
  if (shape.top_k > 0) ranks[0].exchange = parallel::make_gpu_exchange(shape, load.backend, ranks[0].stream);
  ASSIGN_OR_RETURN(auto models, model::load_ranks(load, std::move(ranks)));
  self->model_ = std::move(models[0]);
  kv::KvLayout layout;
  layout.num_layers = config.num_layers;
  layout.row_width = config.mla().row_width();
  layout.dtype = load.backend == kernels::Backend::kCuda ? device::DType::kBF16 : device::DType::kF32;
  layout.block_tokens = self->plan_.block_tokens;
  layout.num_blocks = int32_t(self->plan_.blocks_each() * (self->plan_.decode ? self->plan_.batch : 1));
  self->cache_.emplace(device::Device::kCuda, layout);
  self->logits_ = device::Buffer(device::Device::kCuda, size_t(load.limits.max_logit_rows * config.vocab_size) * 4);
  self->workspace_.emplace(device::Device::kCuda, size_t(1) << 20);
  self->blocks_.resize(size_t(layout.num_blocks));
  std::iota(self->blocks_.begin(), self->blocks_.end(), 0);
  std::shuffle(self->blocks_.begin(), self->blocks_.end(), std::mt19937(1));
  if (self->plan_.records) {
    RETURN_IF_ERROR(self->model_->record_decode({.batch_sizes = {int32_t(self->plan_.batch)}}, *self->cache_,
                                                static_cast<float*>(self->logits_.data())));
  }
  return self;
}

void EmulatedRank::fill_batch() {
  const int64_t sequences = plan_.decode ? plan_.batch : 1, rows = plan_.decode ? 1 : plan_.context;
  const auto prefix = int32_t(plan_.decode ? plan_.context + steps_ : 0);
  std::mt19937 random(uint32_t(steps_ + 1));
  tokens_.clear();
  positions_.clear();
  slots_.clear();
  rows_.clear();
  sequences_.clear();
  for (int64_t s = 0; s < sequences; ++s) {
    const int32_t* table = blocks_.data() + s * plan_.blocks_each();
    sequences_.push_back({int32_t(s * rows), int32_t(rows), prefix, table});
    for (int32_t i = 0; i < rows; ++i) {
      const int32_t position = prefix + i;
      // Decode goes on with what was drawn; the first time, and in prefill, anything.
      tokens_.push_back(plan_.decode && !drawn_.empty() ? drawn_[size_t(s)].token
                                                        : int32_t(random() % uint32_t(model_->config().vocab_size)));
      positions_.push_back(position);
      slots_.push_back(table[position / plan_.block_tokens] * plan_.block_tokens + position % plan_.block_tokens);
    }
    rows_.push_back(int32_t(tokens_.size()) - 1);
  }
}

Result<double> EmulatedRank::step() {
  const auto begin = std::chrono::steady_clock::now();
  fill_batch();
  model::ForwardBatch batch;
  batch.phase = plan_.decode ? model::Phase::kDecode : model::Phase::kPrefill;
  batch.step = uint64_t(steps_);
  batch.token_ids = tokens_;
  batch.positions = positions_;
  batch.slots = slots_;
  batch.sequences = sequences_;
  batch.logit_rows = rows_;
  batch.logits = static_cast<float*>(logits_.data());
  RETURN_IF_ERROR(model_->forward(batch, *cache_, {}));
  const std::chrono::duration<double, std::milli> sent = std::chrono::steady_clock::now() - begin;
  params_.assign(rows_.size(), {});
  for (kernels::SampleParams& p : params_) p.temperature = 0;
  drawn_.resize(rows_.size());
  kernels::Context ctx{plan_.load.backend, {}, &pool_, &*workspace_, nullptr, model_->stream()};
  const device::TensorView logits(logits_.data(), device::DType::kF32,
                                  {int64_t(rows_.size()), model_->config().vocab_size});
  kernels::sample(ctx, logits, params_, drawn_);
  steps_ += 1;
  for (const kernels::SampleResult& result : drawn_) {
    if (!result.finite) return corrupt(fmt::format("step {}: a row of logits is not finite", steps_));
  }
  return sent.count();
}

Result<std::vector<device::LaunchLog::Total>> EmulatedRank::log_step() {
  log_.start(*model_->stream());
  ASSIGN_OR_RETURN(const double sent, step());
  static_cast<void>(sent);
  return log_.stop(*model_->stream());
}

double percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[size_t(double(values.size() - 1) * share)];
}

Status run(const FlagValues& flags) {
  ASSIGN_OR_RETURN(const device::GpuInfo gpu, device::find_gpu(0));
  ASSIGN_OR_RETURN(Plan plan, make_plan(flags));
  const int64_t steps = plan.steps, tokens = plan.load.limits.max_tokens;
  fmt::print("{}: rank {} of {}, {} slots, {} of {} tokens a step, context {}\n", gpu.name, plan.rank.value,
             plan.load.experts.topology.num_ranks, plan.load.experts.topology.slots_per_rank, flags.text("phase"),
             tokens, plan.context);
  ASSIGN_OR_RETURN(const std::unique_ptr<EmulatedRank> rank, EmulatedRank::create(std::move(plan)));
  std::vector<double> took, sent;
  for (int64_t i = -kWarmUp; i < steps; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    ASSIGN_OR_RETURN(const double sending, rank->step());
    const std::chrono::duration<double, std::milli> whole = std::chrono::steady_clock::now() - begin;
    if (i < 0) continue;
    took.push_back(whole.count());
    sent.push_back(sending);
  }
  const double median = percentile(took, 0.5), mean = std::accumulate(took.begin(), took.end(), 0.0) / double(steps);
  fmt::print("steps {}, ms per step: mean {:.2f}, median {:.2f}, p10 {:.2f}, p90 {:.2f}\n", steps, mean, median,
             percentile(took, 0.1), percentile(took, 0.9));
  fmt::print("tokens/s/GPU {:.0f}; the host sends a step off in {:.2f} ms\n", double(tokens) / mean * 1e3,
             percentile(sent, 0.5));
  ASSIGN_OR_RETURN(const auto totals, rank->log_step());
  double sum = 0;
  for (const auto& total : totals) sum += total.microseconds;
  fmt::print("{:<28}{:>12} {:>9} {:>9} {:>7}\n", "kernel", "us a step", "launches", "us each", "share");
  for (const auto& total : totals) {
    fmt::print("{:<28}{:>12.0f} {:>9} {:>9.1f} {:>6.1f}%\n", total.name, total.microseconds, total.launches,
               total.microseconds / double(total.launches), 100 * total.microseconds / sum);
  }
  return Ok{};
}

}  // namespace

int run_bench_rank(Args args) {
  Result<ParseOutcome> parsed = parse_flags(
      "bench_rank", "One rank of an emulated expert-parallel group on one GPU: time of its steps.", kFlags, args);
  if (parsed && parsed->help_shown) return 0;
  const Status status = parsed ? run(parsed->values) : Status(parsed.error());
  if (status) return 0;
  fmt::print(stderr, "tandem bench_rank: error: {}\n", status.error().message);
  return status.error().code == ErrorCode::kInvalidInput || status.error().code == ErrorCode::kNotFound ? 2 : 1;
}

}  // namespace tandem::app
