// Prefill and decode tokens/s through Engine, turn by turn, as a server runs it but without HTTP: planning, votes, the
// forward pass, sampling, events. Beside each figure: the share of the time outside Model::forward.
//   engine_serving_bench [--config tiny,s,m] [--threads 2] [--batches 1,8,32,64] [--steps 32] [--prompts 512,2048]
// Invented weights in the shapes of tests/data/configs (s, m), or the trained model (tiny). Greedy; decode at context
// 256.
#include <fmt/format.h>

#include <cstdlib>
#include <random>
#include <sstream>

#include "base/log.h"
#include "engine/engine.h"

namespace tandem::bench {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string configs = "tiny,s,m", batches = "1,8,32,64", prompts = "512,2048";
  int threads = 2;
  int32_t steps = 32;
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) parts.push_back(part);
  return parts;
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Counts the time spent inside the model.
class TimedModel final : public model::Model {
 public:
  explicit TimedModel(std::unique_ptr<model::Model> model) : model_(std::move(model)) {}
  const model::ModelConfig& config() const override { return model_->config(); }
  uint64_t fingerprint() const override { return model_->fingerprint(); }
  model::ExpertSlots* expert_slots() override { return model_->expert_slots(); }
  Status forward(const model::ForwardBatch& batch, kv::KvStorage& cache,
                 const std::function<void(int32_t)>& layer_done) override {
    const auto start = Clock::now();
    Status done = model_->forward(batch, cache, layer_done);
    seconds += seconds_since(start);
    return done;
  }
  void finish(const model::ForwardBatch& batch) override { model_->finish(batch); }
  double seconds = 0;

 private:
  std::unique_ptr<model::Model> model_;
};

engine::EngineConfig engine_config() {
  engine::EngineConfig config;
  config.block_tokens = 16;
  config.max_total_tokens = 64 * 512;
  config.max_running_requests = 64;
  config.chunked_prefill_size = 2048;
  config.max_prefill_tokens = 2048;
  config.context_length = 4096;
  config.radix_cache = false;
  config.decode_log_interval = 1 << 30;
  return config;
}

class Bench {
 public:
  Bench(const std::string& name, const Options& options)
      : name_(name), pool_(options.threads), workspace_(device::Device::kCpu, size_t(64) << 20) {
    const engine::EngineConfig config = engine_config();
    model::LoadOptions load;
    const bool tiny = name == "tiny";
    load.directory = std::string(TANDEM_SOURCE_DIR) + (tiny ? "/models/tiny" : "/tests/data/configs/" + name);
    load.dummy_weights = !tiny;
    load.backend = kernels::Backend::kCpu;
    load.isa = kernels::best_isa();
    load.num_threads = options.threads;
    load.limits = engine::forward_limits(config);
    auto loaded = model::load_model(load);
    if (!loaded) {
      fmt::print(stderr, "{}\n", loaded.error().message);
      std::exit(1);
    }
    model_ = std::make_unique<TimedModel>(std::move(*loaded));
    const kv::KvLayout layout{model_->config().num_layers, model_->config().mla().row_width(), device::DType::kBF16,
                              config.block_tokens, config.max_total_tokens / config.block_tokens};
    cache_ = std::make_unique<kv::KvStorage>(device::Device::kCpu, layout);
    communicators_ = parallel::make_local_communicators(1, std::chrono::seconds(60));
    engine::EngineParts parts;
    parts.clock = &clock_;
    parts.model = model_.get();
    parts.kernels = {kernels::Backend::kCpu, load.isa, &pool_, &workspace_};
    parts.cache = cache_.get();
    parts.communicator = communicators_[0].get();
    parts.metrics = &metrics_;
    engine_ = std::move(*engine::Engine::create(config, parts, [this](api::EngineEvent event) {
      tokens_ += int64_t(event.tokens.size());
      ended_ += event.finish.has_value();
    }));
  }

  void prefill(int32_t prompt) {
    std::vector<double> rates, shares;
    for (int round = 0; round < 4; ++round) {
      ended_ = 0;
      submit(prompt, 1);
      const auto start = Clock::now();
      model_->seconds = 0;
      while (ended_ == 0) engine_->turn();
      const double elapsed = seconds_since(start);
      if (round == 0) continue;  // warms up
      rates.push_back(prompt / elapsed);
      shares.push_back(1 - model_->seconds / elapsed);
    }
    print(fmt::format("engine/prefill/{}/tokens={}", name_, prompt), rates, shares);
  }

  void decode(int32_t batch, int32_t steps) {
    constexpr int32_t kContext = 256;
    std::vector<double> rates, shares;
    for (int round = 0; round < 3; ++round) {
      ended_ = 0;
      for (int32_t i = 0; i < batch; ++i) submit(kContext - steps / 2, steps + 8);
      // Until all run: the last prefill step has given its first token.
      while (engine_->snapshot().running < batch) engine_->turn();
      tokens_ = 0;
      model_->seconds = 0;
      const auto start = Clock::now();
      for (int32_t step = 0; step < steps / 2; ++step) engine_->turn();
      const double elapsed = seconds_since(start);
      rates.push_back(double(tokens_) / elapsed);
      shares.push_back(1 - model_->seconds / elapsed);
      while (ended_ < batch) engine_->turn();
    }
    print(fmt::format("engine/decode/{}/sequences={}/context={}", name_, batch, kContext), rates, shares);
  }

 private:
  void submit(int32_t prompt, int32_t max_new_tokens) {
    api::EngineRequest request;
    request.id = {next_id_++};
    request.rid = std::to_string(request.id.value);
    for (int32_t i = 0; i < prompt; ++i) {
      request.input_ids.push_back(int32_t(random_() % uint64_t(model_->config().vocab_size)));
    }
    request.sampling.edit().temperature = 0;
    request.sampling.edit().max_new_tokens = max_new_tokens;
    request.sampling.edit().ignore_eos = true;
    engine_->submit(engine::SubmitCommand{std::move(request)});
  }

  static void print(const std::string& name, std::vector<double> rates, std::vector<double> shares) {
    std::sort(rates.begin(), rates.end());
    std::sort(shares.begin(), shares.end());
    fmt::print("{:<44} {:>10.1f} tok/s (best {:.1f}) {:>6.2f}% outside the model\n", name, rates[rates.size() / 2],
               rates.back(), 100 * shares[shares.size() / 2]);
    std::fflush(stdout);
  }

  const std::string name_;
  SystemClock clock_;
  device::ThreadPool pool_;
  device::Workspace workspace_;
  std::unique_ptr<TimedModel> model_;
  std::unique_ptr<kv::KvStorage> cache_;
  std::vector<std::unique_ptr<parallel::Communicator>> communicators_;
  profile::Metrics metrics_;
  std::mt19937_64 random_{1};
  uint64_t next_id_ = 1;
  int64_t tokens_ = 0, ended_ = 0;
  std::unique_ptr<engine::Engine> engine_;  // last
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--config") {
      options.configs = value;
    } else if (flag == "--batches") {
      options.batches = value;
    } else if (flag == "--prompts") {
      options.prompts = value;
    } else if (flag == "--threads") {
      options.threads = std::stoi(value);
    } else if (flag == "--steps") {
      options.steps = std::stoi(value);
    } else {
      fmt::print(stderr, "unknown flag {}\n", flag);
      std::exit(1);
    }
  }
  return options;
}

void run(const Options& options) {
  for (const std::string& config : split(options.configs)) {
    Bench bench(config, options);
    for (const std::string& prompt : split(options.prompts)) bench.prefill(std::stoi(prompt));
    for (const std::string& batch : split(options.batches)) bench.decode(std::stoi(batch), options.steps);
  }
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  tandem::log::configure(tandem::log::Level::kError, false);
  tandem::bench::run(tandem::bench::parse(argc, argv));
}
