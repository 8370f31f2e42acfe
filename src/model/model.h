// Model: one forward step of a batch on one rank. The seam that lets the simulation run with a fake.
// Thread: the rank's engine thread. A step allocates nothing: all scratch is sized by ForwardLimits at creation.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/result.h"
#include "kernels/attention.h"
#include "kernels/context.h"
#include "kv/storage.h"
#include "model/config.h"

namespace tandem::model {

enum class Phase : uint8_t { kPrefill, kDecode };  // chooses the attention kernel: expanded or absorbed

struct ForwardBatch {
  Phase phase = Phase::kPrefill;
  std::span<const int32_t> token_ids;  // [T]
  std::span<const int32_t> positions;  // [T]
  std::span<const int32_t> slots;      // [T] physical cache rows: block * block_tokens + offset
  std::span<const kernels::SequenceSpan> sequences;
  std::span<const int32_t> logit_rows;  // rows of the batch whose logits are wanted, ascending
  float* logits = nullptr;              // out [logit_rows.size(), vocab_size] f32, caller's memory
  int32_t* expert_counts = nullptr;     // out [num_layers, num_routed_experts], added to; null: not wanted
};

struct ForwardLimits {
  int64_t max_tokens = 0;  // per step
  int64_t max_sequences = 0;
  int64_t max_logit_rows = 0;
  int64_t max_context = 0;  // tokens of one sequence
};

class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  // Identity for the handover's handshake: a hash over config and weights' metadata.
  virtual uint64_t fingerprint() const = 0;
  // layer_done(layer): called on this thread as soon as the cache of `layer` holds the batch's rows. May be empty.
  virtual void forward(const ForwardBatch& batch, kv::KvStorage& cache,
                       const std::function<void(int32_t layer)>& layer_done) = 0;
};

struct LoadOptions {
  std::string directory;         // config.json and (unless dummy) safetensors
  std::string config_overrides;  // --json-model-override-args
  bool dummy_weights = false;    // --load-format dummy: weights by seed, FP8 blocks if the config says so
  uint64_t seed = 0;
  kernels::Backend backend = kernels::Backend::kCpu;
  kernels::Isa isa = kernels::Isa::kAvx2;
  int num_threads = 1;  // of the rank's pool
  ForwardLimits limits;
  std::function<void(double fraction)> progress;  // while loading; may be empty
};

// What a model of these limits will take, before anything is allocated.
struct MemoryPlan {
  int64_t weight_bytes = 0;  // as packed
  int64_t workspace_bytes = 0;
};
Result<MemoryPlan> plan_memory(const ModelConfig& config, const LoadOptions& options);

// Reads config.json, maps the shards, checks every tensor, packs. Errors name file and fault in one line.
Result<std::unique_ptr<Model>> load_model(const LoadOptions& options);

// Reads and parses DIR/config.json with overrides.
Result<ModelConfig> load_config(const std::string& directory, const std::string& overrides);

// `tandem model show DIR`: shapes, bytes, parameters, as a table.
Result<std::string> describe_checkpoint(const std::string& directory, const std::string& overrides);

}  // namespace tandem::model
