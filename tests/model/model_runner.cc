#include "tests/model/model_runner.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

namespace tandem::model::testing {

std::string data_path(const std::string& name) { return std::string(TANDEM_SOURCE_DIR) + "/tests/data/" + name; }
std::string tiny_directory() { return std::string(TANDEM_SOURCE_DIR) + "/models/tiny"; }

json::Document load_json(const std::string& path) {
  auto document = json::Document::load(path);
  if (!document) {
    std::fprintf(stderr, "%s\n", document.error().message.c_str());
    std::abort();
  }
  return std::move(*document);
}

Json field(Json object, std::string_view key) {
  Json value;
  CHECK(object.at_key(key).get(value) == simdjson::SUCCESS);
  return value;
}

std::vector<Json> items(Json array) {
  simdjson::dom::array values;
  CHECK(array.get(values) == simdjson::SUCCESS);
  std::vector<Json> out;
  for (Json item : values) out.push_back(item);
  return out;
}

double number(Json element) {
  double value = 0;
  CHECK(element.get(value) == simdjson::SUCCESS);
  return value;
}

std::string text(Json element) {
  std::string_view value;
  CHECK(element.get(value) == simdjson::SUCCESS);
  return std::string(value);
}

std::vector<int32_t> int_array(Json array) {
  std::vector<int32_t> out;
  for (Json item : items(array)) out.push_back(int32_t(number(item)));
  return out;
}

std::vector<float> float_array(Json array) {
  std::vector<float> out;
  for (Json item : items(array)) out.push_back(float(number(item)));
  return out;
}

LoadOptions load_options(const RunnerOptions& options) {
  LoadOptions load;
  load.directory = options.directory;
  load.dummy_weights = options.dummy_weights;
  load.seed = options.seed;
  load.backend = options.backend;
  load.isa = options.isa;
  load.num_threads = options.num_threads;
  load.experts.payload = options.payload;
  load.limits = {options.max_tokens, options.max_sequences, options.max_tokens, options.max_context};
  return load;
}

std::unique_ptr<Model> must_load(const RunnerOptions& options) {
  auto model = load_model(load_options(options));
  if (!model) {
    std::fprintf(stderr, "%s\n", model.error().message.c_str());
    std::abort();
  }
  return std::move(*model);
}

namespace {

kv::KvLayout layout_of(const Model& model, const RunnerOptions& options) {
  kv::KvLayout layout;
  layout.num_layers = model.config().num_layers;
  layout.row_width = model.config().mla().row_width();
  layout.dtype = options.kv_dtype;
  layout.block_tokens = options.block_tokens;
  layout.num_blocks = int32_t(2 * (options.max_context + options.max_sequences * 64) / options.block_tokens);
  return layout;
}

}  // namespace

std::shared_ptr<kv::KvStorage> Runner::make_cache(const Model& model, const RunnerOptions& options) {
  return std::make_shared<kv::KvStorage>(kernels::device_of(options.backend), layout_of(model, options));
}

Runner::Runner(Model& model, const RunnerOptions& options, std::shared_ptr<kv::KvStorage> cache)
    : model_(model), options_(options), cache_(cache ? std::move(cache) : make_cache(model, options)) {
  reset();
}

void Runner::reset() {
  sequences_.clear();
  free_blocks_.resize(size_t(cache_->layout().num_blocks));
  for (size_t i = 0; i < free_blocks_.size(); ++i) free_blocks_[i] = int32_t(i);
  std::mt19937 random(7);
  std::shuffle(free_blocks_.begin(), free_blocks_.end(), random);
}

int Runner::add_sequence(int32_t max_tokens) {
  Sequence& sequence = sequences_.emplace_back();
  for (int32_t held = 0; held < max_tokens; held += options_.block_tokens) {
    CHECK(!free_blocks_.empty());
    sequence.blocks.push_back(free_blocks_.back());
    free_blocks_.pop_back();
  }
  return int(sequences_.size()) - 1;
}

std::vector<float> Runner::step(Phase phase, std::span<const int> sequences,
                                const std::vector<std::vector<int32_t>>& ids, bool all_rows) {
  std::vector<int32_t> tokens, positions, slots, logit_rows;
  std::vector<kernels::SequenceSpan> spans;
  for (size_t s = 0; s < sequences.size(); ++s) {
    Sequence& sequence = sequences_[size_t(sequences[s])];
    spans.push_back({int32_t(tokens.size()), int32_t(ids[s].size()), sequence.length, sequence.blocks.data()});
    for (int32_t id : ids[s]) {
      const int32_t position = sequence.length++;
      CHECK(size_t(position / options_.block_tokens) < sequence.blocks.size());
      if (all_rows) logit_rows.push_back(int32_t(tokens.size()));
      tokens.push_back(id);
      positions.push_back(position);
      slots.push_back(sequence.blocks[size_t(position / options_.block_tokens)] * options_.block_tokens +
                      position % options_.block_tokens);
    }
    if (!all_rows) logit_rows.push_back(int32_t(tokens.size()) - 1);
  }
  std::vector<float> logits(logit_rows.size() * size_t(model_.config().vocab_size));
  ForwardBatch batch;
  batch.phase = phase;
  batch.step = steps_++;
  batch.exchange_mode = exchange_mode;
  batch.two_batches = two_batches;
  batch.token_ids = tokens;
  batch.positions = positions;
  batch.slots = slots;
  batch.sequences = spans;
  batch.logit_rows = logit_rows;
  const bool on_gpu = is_cuda(options_.backend);
  const bool records = recorded_logits_.bytes() > 0;
  const device::Buffer own(device::Device::kCuda, on_gpu && !records ? logits.size() * sizeof(float) : 0);
  const device::Buffer& there = records ? recorded_logits_ : own;
  batch.logits = on_gpu ? static_cast<float*>(there.data()) : logits.data();
  batch.expert_counts = expert_counts ? expert_counts->data() : nullptr;
  layers_done.clear();
  std::function<void(int32_t)> layer_done = [this](int32_t layer) { layers_done.push_back(layer); };
  if (records) layer_done = {};  // a recorded step tells nobody
  CHECK(model_.forward(batch, *cache_, layer_done).has_value());
  if (on_gpu) {
    model_.stream()->synchronize();
    device::copy_bytes(logits.data(), there.data(), logits.size() * sizeof(float));
  }
  model_.finish(batch);
  return logits;
}

std::vector<float> Runner::prefill(int sequence, std::span<const int32_t> ids, int32_t chunk, bool all_rows) {
  const size_t limit = chunk <= 0 ? size_t(options_.max_tokens) : size_t(chunk);
  std::vector<float> logits;
  for (size_t at = 0; at < ids.size(); at += limit) {
    const auto part = ids.subspan(at, std::min(limit, ids.size() - at));
    const std::vector<float> some = step(Phase::kPrefill, {{sequence}}, {{part.begin(), part.end()}}, all_rows);
    if (!all_rows) logits.clear();
    logits.insert(logits.end(), some.begin(), some.end());
  }
  return logits;
}

std::vector<float> Runner::decode(std::span<const int> sequences, std::span<const int32_t> tokens) {
  std::vector<std::vector<int32_t>> ids;
  for (int32_t token : tokens) ids.push_back({token});
  return step(Phase::kDecode, sequences, ids, false);
}

std::vector<float> Runner::prefill_batch(std::span<const int> sequences, const std::vector<std::vector<int32_t>>& ids) {
  return step(Phase::kPrefill, sequences, ids, false);
}

void Runner::record_decode(const DecodeRecording& what) {
  const size_t rows = size_t(options_.max_sequences) * size_t(model_.config().vocab_size);
  recorded_logits_ = device::Buffer(device::Device::kCuda, rows * sizeof(float));
  CHECK(model_.record_decode(what, *cache_, static_cast<float*>(recorded_logits_.data())).has_value());
}

void Runner::idle() { step(Phase::kDecode, {}, {}, false); }

int32_t argmax(std::span<const float> logits) {
  return int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

double log_probability(std::span<const float> logits, int32_t token) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(double(logit) - top);
  return double(logits[size_t(token)]) - top - std::log(sum);
}

}  // namespace tandem::model::testing
