// Whole forward passes: prefill of 512 and 2,048 tokens, decode of 1, 8, 32 and 64 sequences at context 256, with
// invented weights in the shapes of tests/data/configs (s, m) or the trained model (tiny). Prints tokens/s and the
// share of the machine's limits, measured in the same run.
//   model_forward_bench [--config s,m,tiny] [--cases prefill512,decode8] [--threads 2] [--backend cpu|ref]
//                       [--isa avx2|avx512|avx512_bf16] [--kv f32|bf16] [--seconds 2]
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <random>
#include <sstream>

#include "bench/machine_limits.h"
#include "kv/storage.h"
#include "model/arch/deepseek.h"
#include "model/model.h"

namespace tandem::bench {
namespace {

constexpr int32_t kBlockTokens = 16;
constexpr int32_t kDecodeContext = 256;

struct Options {
  std::string configs = "tiny,s,m", cases = "prefill512,prefill2048,decode1,decode8,decode32,decode64";
  int threads = 2;
  kernels::Backend backend = kernels::Backend::kCpu;
  kernels::Isa isa = kernels::best_isa();
  device::DType kv = device::DType::kF32;
  double seconds = 2;
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) parts.push_back(part);
  return parts;
}

[[noreturn]] void fail(const std::string& message) {
  fmt::print(stderr, "{}\n", message);
  std::exit(1);
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--config")
      options.configs = value;
    else if (flag == "--cases")
      options.cases = value;
    else if (flag == "--threads")
      options.threads = std::stoi(value);
    else if (flag == "--seconds")
      options.seconds = std::stod(value);
    else if (flag == "--backend")
      options.backend = value == "ref" ? kernels::Backend::kRef : kernels::Backend::kCpu;
    else if (flag == "--kv")
      options.kv = value == "bf16" ? device::DType::kBF16 : device::DType::kF32;
    else if (flag == "--isa") {
      for (kernels::Isa isa : {kernels::Isa::kAvx2, kernels::Isa::kAvx512, kernels::Isa::kAvx512Bf16}) {
        if (value == kernels::to_string(isa)) options.isa = isa;
      }
    } else {
      fail(fmt::format("unknown flag {}", flag));
    }
  }
  return options;
}

struct Case {
  bool decode = false;
  int32_t size = 0;  // tokens of the prompt, or sequences
};

Case parse_case(const std::string& name) {
  if (name.starts_with("prefill")) return {false, std::stoi(name.substr(7))};
  if (name.starts_with("decode")) return {true, std::stoi(name.substr(6))};
  fail(fmt::format("unknown case {}", name));
}

// One batch, repeated: the cache rows it writes are the same each time.
class Workload {
 public:
  Workload(const Case& c, const model::ModelConfig& config) : case_(c) {
    const int32_t length = c.decode ? kDecodeContext : c.size, sequences = c.decode ? c.size : 1;
    const int32_t rows = c.decode ? 1 : c.size, blocks = (length + kBlockTokens - 1) / kBlockTokens;
    std::mt19937 random(1);
    table_.resize(size_t(blocks) * size_t(sequences));
    std::iota(table_.begin(), table_.end(), 0);
    std::shuffle(table_.begin(), table_.end(), random);
    for (int32_t s = 0; s < sequences; ++s) {
      const int32_t* table = table_.data() + size_t(s) * size_t(blocks);
      spans_.push_back({s * rows, rows, length - rows, table});
      for (int32_t position = length - rows; position < length; ++position) {
        tokens_.push_back(int32_t(random() % uint32_t(config.vocab_size)));
        positions_.push_back(position);
        slots_.push_back(table[position / kBlockTokens] * kBlockTokens + position % kBlockTokens);
      }
      logit_rows_.push_back((s + 1) * rows - 1);
    }
    logits_.resize(logit_rows_.size() * size_t(config.vocab_size));
    counts_.resize(size_t(config.num_layers) * size_t(std::max(config.num_routed_experts, 1)));
  }

  int64_t num_tokens() const { return int64_t(tokens_.size()); }
  int32_t num_blocks() const { return int32_t(table_.size()); }

  void step(model::Model& model, kv::KvStorage& cache) {
    std::fill(counts_.begin(), counts_.end(), 0);
    model::ForwardBatch batch;
    batch.phase = case_.decode ? model::Phase::kDecode : model::Phase::kPrefill;
    batch.token_ids = tokens_;
    batch.positions = positions_;
    batch.slots = slots_;
    batch.sequences = spans_;
    batch.logit_rows = logit_rows_;
    batch.logits = logits_.data();
    batch.expert_counts = model.config().num_routed_experts > 0 ? counts_.data() : nullptr;
    CHECK(model.forward(batch, cache, {}).has_value());
  }

  // Experts that the last step touched, over all layers.
  int64_t experts_touched() const {
    return std::count_if(counts_.begin(), counts_.end(), [](int32_t n) { return n > 0; });
  }

 private:
  const Case case_;
  std::vector<int32_t> table_, tokens_, positions_, slots_, logit_rows_, counts_;
  std::vector<kernels::SequenceSpan> spans_;
  std::vector<float> logits_;
};

struct Cost {
  double bytes = 0, flops = 0;
};

// Least work of a step: every weight that a token needs read once, the latents read once per sequence.
Cost cost_of(const Case& c, const model::ModelConfig& config, int64_t experts_touched, size_t latent_bytes) {
  const double tokens = c.size, context = c.decode ? kDecodeContext : (c.size + 1) / 2.0;
  Cost cost;
  for (const model::TensorSpec& spec : model::deepseek_tensors(config)) {
    const double n = double(spec.num_elements()), width = spec.is_fp8(config.fp8_blocks) ? 1 : 2;
    if (spec.group == model::TensorGroup::kEmbedding) continue;
    if (spec.group == model::TensorGroup::kRoutedExperts) {
      cost.flops += 2 * n * tokens * config.gate.top_k / config.num_routed_experts;
      continue;
    }
    cost.bytes += n * width;
    cost.flops += 2 * n * (spec.group == model::TensorGroup::kHead && !c.decode ? 1 : tokens);
  }
  const double expert = 3.0 * config.hidden_size * config.moe_intermediate_size;
  cost.bytes += double(experts_touched) * expert * (config.fp8_blocks ? 1 : 2);
  const kernels::MlaShape shape = config.mla();
  const double latents = double(shape.row_width()) * config.num_layers;
  const double per_pair = c.decode ? 2.0 * shape.num_heads * (shape.row_width() + shape.kv_lora_rank)
                                   : 2.0 * shape.num_heads * (shape.nope_dim + shape.rope_dim + shape.v_dim);
  cost.flops += per_pair * tokens * context * config.num_layers;
  cost.bytes += double(latent_bytes) * latents * tokens * (c.decode ? context : 1);
  return cost;
}

void run_case(const std::string& label, const Case& c, model::Model& model, const Options& options,
              const MachineLimits& limits) {
  Workload workload(c, model.config());
  kv::KvLayout layout;
  layout.num_layers = model.config().num_layers;
  layout.row_width = model.config().mla().row_width();
  layout.dtype = options.kv;
  layout.block_tokens = kBlockTokens;
  layout.num_blocks = workload.num_blocks();
  kv::KvStorage cache(device::Device::kCpu, layout);
  workload.step(model, cache);
  std::vector<double> times;
  const auto start = std::chrono::steady_clock::now();
  while (times.size() < 3 || seconds_since(start) < options.seconds) {
    const auto before = std::chrono::steady_clock::now();
    workload.step(model, cache);
    times.push_back(seconds_since(before));
  }
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2];
  const Cost cost = cost_of(c, model.config(), workload.experts_touched(), size_of(options.kv));
  fmt::print("{:<22} {:>10.1f} tok/s {:>10.3f} ms (best {:.3f})  {:>5.1f}% of reads {:>5.1f}% of flops  ({} steps)\n",
             label, double(workload.num_tokens()) / median, median * 1e3, times[0] * 1e3,
             100 * cost.bytes / median / limits.read_bytes_per_s, 100 * cost.flops / median / limits.flops_per_s,
             times.size());
  std::fflush(stdout);
}

void run_config(const std::string& name, const Options& options, const MachineLimits& limits) {
  model::LoadOptions load;
  const bool tiny = name == "tiny";
  load.directory = std::string(TANDEM_SOURCE_DIR) + (tiny ? "/models/tiny" : "/tests/data/configs/" + name);
  load.dummy_weights = !tiny;
  load.backend = options.backend;
  load.isa = options.isa;
  load.num_threads = options.threads;
  load.limits = {2048, 64, 64, 4096};
  const auto start = std::chrono::steady_clock::now();
  auto loaded = model::load_model(load);
  if (!loaded) fail(loaded.error().message);
  fmt::print("{}: loaded in {:.1f} s\n", name, seconds_since(start));
  for (const std::string& c : split(options.cases)) {
    run_case(fmt::format("{}/{}", name, c), parse_case(c), **loaded, options, limits);
  }
}

int main_with(const Options& options) {
  const MachineLimits limits = measure_machine(options.threads);
  fmt::print("machine: {} threads, reads {:.1f} GB/s, {:.3f} TFLOP/s; backend {} {}\n", options.threads,
             limits.read_bytes_per_s / 1e9, limits.flops_per_s / 1e12,
             options.backend == kernels::Backend::kRef ? "ref" : "cpu", kernels::to_string(options.isa));
  for (const std::string& config : split(options.configs)) run_config(config, options, limits);
  return 0;
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) { return tandem::bench::main_with(tandem::bench::parse(argc, argv)); }
