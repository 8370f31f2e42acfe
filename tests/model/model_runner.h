// Runs a Model the way an engine would: paged cache with scattered blocks, chunked prefill, batched decode.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "kv/storage.h"
#include "model/model.h"

namespace tandem::model::testing {

std::string data_path(const std::string& name);  // tests/data/NAME
std::string tiny_directory();                    // models/tiny
json::Document load_json(const std::string& path);

// Fixtures are ours: where an element is not what is asked for, the program ends.
using Json = simdjson::dom::element;
Json field(Json object, std::string_view key);
std::vector<Json> items(Json array);
double number(Json element);
std::string text(Json element);
std::vector<int32_t> int_array(Json array);
std::vector<float> float_array(Json array);

struct RunnerOptions {
  std::string directory = tiny_directory();
  kernels::Backend backend = kernels::Backend::kCpu;
  kernels::Isa isa = kernels::best_isa();
  int num_threads = 2;
  bool dummy_weights = false;
  uint64_t seed = 0;
  int64_t max_tokens = 512;
  int64_t max_context = 4096;
  int64_t max_sequences = 32;
  int32_t block_tokens = 16;
  device::DType kv_dtype = device::DType::kF32;
  parallel::ExchangePayload payload = parallel::ExchangePayload::kAsTheyAre;
};

LoadOptions load_options(const RunnerOptions& options);
// Ends the test program where the model cannot be loaded.
std::unique_ptr<Model> must_load(const RunnerOptions& options);

class Runner {
 public:
  // cache: shared by the ranks of an attention group, which run the same steps; null: the runner's own.
  Runner(Model& model, const RunnerOptions& options, std::shared_ptr<kv::KvStorage> cache = nullptr);
  static std::shared_ptr<kv::KvStorage> make_cache(const Model& model, const RunnerOptions& options);

  // A sequence owns scattered blocks of the cache until reset().
  int add_sequence(int32_t max_tokens);
  void reset();

  // Prefills ids behind what the sequence holds, in chunks (<= 0: as large as the limits allow).
  // Returns logits of the last token, or of all when all_rows, [rows, vocab].
  std::vector<float> prefill(int sequence, std::span<const int32_t> ids, int32_t chunk, bool all_rows = false);
  // One token per sequence in one batch; logits [sequences, vocab].
  std::vector<float> decode(std::span<const int> sequences, std::span<const int32_t> tokens);
  // One prefill step over the given rows of several sequences at once; logits of each one's last row.
  std::vector<float> prefill_batch(std::span<const int> sequences, const std::vector<std::vector<int32_t>>& ids);

  // From now on decode steps run from recordings where the model finds one.
  void record_decode(const DecodeRecording& what);

  // A step without tokens: takes part in the exchanges of the group.
  void idle();

  parallel::ExchangeMode exchange_mode = parallel::ExchangeMode::kNormal;
  bool two_batches = false;
  std::vector<int32_t>* expert_counts = nullptr;  // when set, added to
  std::vector<int32_t> layers_done;               // of the last step
  int32_t length(int sequence) const { return sequences_[size_t(sequence)].length; }

 private:
  struct Sequence {
    std::vector<int32_t> blocks;
    int32_t length = 0;
  };
  std::vector<float> step(Phase phase, std::span<const int> sequences, const std::vector<std::vector<int32_t>>& ids,
                          bool all_rows);

  Model& model_;
  const RunnerOptions options_;
  const std::shared_ptr<kv::KvStorage> cache_;
  std::vector<int32_t> free_blocks_;
  std::vector<Sequence> sequences_;
  device::Buffer recorded_logits_;
  uint64_t steps_ = 0;
};

int32_t argmax(std::span<const float> logits);
// Log-probability of `token` under softmax(logits).
double log_probability(std::span<const float> logits, int32_t token);

}  // namespace tandem::model::testing
