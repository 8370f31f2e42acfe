// Model: one forward step of a batch on one rank. The seam that lets the simulation run with a fake.
// Thread: the rank's engine thread. A step allocates nothing: all scratch is sized by ForwardLimits at creation.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "experts/dispatch.h"
#include "experts/placement.h"
#include "kernels/attention.h"
#include "kernels/context.h"
#include "kv/storage.h"
#include "model/config.h"
#include "model/expert_slots.h"
#include "parallel/attention_group.h"
#include "parallel/expert_exchange.h"

namespace tandem::model {

enum class Phase : uint8_t { kPrefill, kDecode };  // chooses the attention kernel: expanded or absorbed

// With no token at all the rank takes part in the group's exchanges and computes nothing of its own. The ranks of an
// attention group get the same batch and the same cache.
struct ForwardBatch {
  Phase phase = Phase::kPrefill;
  uint64_t step = 0;  // the group's; names exchanges in errors and seeds the choice among replicas
  parallel::ExchangeMode exchange_mode = parallel::ExchangeMode::kNormal;  // the same on all ranks
  // Two halves take turns, so that rows of one travel while the other computes. The same on all ranks; needs an
  // exchange of two channels.
  bool two_batches = false;
  std::span<const int32_t> token_ids;  // [T]
  std::span<const int32_t> positions;  // [T]
  std::span<const int32_t> slots;      // [T] physical cache rows: block * block_tokens + offset
  std::span<const kernels::SequenceSpan> sequences;
  std::span<const int32_t> logit_rows;  // rows of the batch whose logits are wanted, ascending
  // out [logit_rows.size(), vocab_size] f32, caller's memory on the model's device; null on ranks of an attention group
  // that need none.
  float* logits = nullptr;
  // out [num_layers, num_routed_experts], added to, on a GPU by finish(); null: not wanted
  int32_t* expert_counts = nullptr;
  int32_t* slot_counts = nullptr;   // out [num_layers, slots of all ranks], added to; null: not wanted. On the CPU
  int32_t* chosen_slots = nullptr;  // out [num_layers, T, top_k], layers with experts only; null: not wanted. CPU
};

struct ForwardLimits {
  int64_t max_tokens = 0;  // per step
  int64_t max_sequences = 0;
  int64_t max_logit_rows = 0;
  int64_t max_context = 0;  // tokens of one sequence
};

// Which decode steps a GPU is to run from a recording (CUDA graphs).
struct DecodeRecording {
  std::vector<int32_t> batch_sizes;  // ascending; none: all steps are sent op by op
  // Of these steps, where there are other ranks; in another mode they are sent op by op.
  parallel::ExchangeMode exchange_mode = parallel::ExchangeMode::kNormal;
  bool fills_up = true;  // batches in between run as the next larger one
};

class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  // GPU backends: what a step is ordered on; nothing has happened yet when forward() returns. Null on the CPU.
  virtual const device::Stream* stream() const { return nullptr; }
  // Identity for the handover's handshake: a hash over config and weights' metadata.
  virtual uint64_t fingerprint() const = 0;
  // layer_done(layer): called on this thread as soon as the cache of `layer` holds the batch's rows, those of the whole
  // attention group; not without tokens. May be empty. kPeerLost: a rank of the group did not come to an exchange; the
  // model can run no further step.
  virtual Status forward(const ForwardBatch& batch, kv::KvStorage& cache,
                         const std::function<void(int32_t layer)>& layer_done) = 0;
  // After each forward() that succeeded, when whoever needs its logits has waited for them: waits for the rest of the
  // step, and adds to batch.expert_counts what a GPU has counted. The CPU has nothing left to do.
  virtual void finish(const ForwardBatch&) {}
  // GPU backends, before the first step: records decode steps. From then on one with this cache and these logits costs
  // the host one launch. kPeerLost as of forward().
  virtual Status record_decode(const DecodeRecording&, kv::KvStorage&, float*) {
    return invalid_input("this model records no steps");
  }
  virtual bool ran_recorded() const { return false; }  // the last step
  // This rank's experts; null where the model has none.
  virtual ExpertSlots* expert_slots() = 0;
};

// Where routed experts live and how tokens get to them. Of the whole group; the same on all ranks.
struct ExpertOptions {
  experts::EpTopology topology;             // slots_per_rank 0: one slot per expert on the only rank
  experts::ExpertPlacement placement = {};  // no layers: trivial
  experts::DispatchAlgorithm dispatch = experts::DispatchAlgorithm::kStatic;
  int32_t spare_slots = 0;             // of each rank, to change the placement while serving
  bool two_batches = false;            // steps may be split (two-batch overlap)
  double two_batch_threshold = 0.48;   // share of the tokens that the smaller half of a prefill step must have
  int64_t max_low_latency_tokens = 0;  // of one rank in a low-latency dispatch
  // Of rows on their way to experts. kFp8 on a GPU needs quantises_expert_rows().
  parallel::ExchangePayload payload = parallel::ExchangePayload::kAsTheyAre;
};

// One rank of this process.
struct RankOptions {
  Rank rank;
  int num_threads = 1;                                  // of its pool
  std::unique_ptr<parallel::ExpertExchange> exchange;   // of exchange_shape(); null for models without experts
  std::unique_ptr<parallel::AttentionGroup> attention;  // of LoadOptions::attention_tp_size; null where that is 1
  const Clock* clock = nullptr;                         // for the exchange's deadlines
  profile::Recorder* spans = nullptr;                   // of its engine thread; null: nothing is recorded
  // GPU backends: what the rank's kernels run on, in order. Shared with the exchange, whose kernels run on it, too.
  std::shared_ptr<const device::Stream> stream = nullptr;
  int32_t gpu = 0;  // where the rank's weights and memory lie; a thread that calls its model must use it
};

struct LoadOptions {
  std::string directory;         // config.json and (unless dummy) safetensors
  std::string config_overrides;  // --json-model-override-args
  bool dummy_weights = false;    // --load-format dummy: weights by seed, FP8 blocks if the config says so
  uint64_t seed = 0;
  kernels::Backend backend = kernels::Backend::kCpu;
  kernels::Isa isa = kernels::Isa::kAvx2;
  int num_threads = 1;   // while loading; load_model(): of the rank's pool, too
  ForwardLimits limits;  // of one rank, or of an attention group's ranks together: all get the same batches
  // Ranks that share their requests and one KV cache, and split heads and tokens between them.
  int32_t attention_tp_size = 1;
  ExpertOptions experts;
  std::function<void(double fraction)> progress;  // while loading; may be empty
  // One rank of a group that is not there (a benchmark aid): tokens that would go to other ranks' slots take the same
  // slots here. GPU backends.
  bool loop_back = false;
  device::LaunchLog* launches = nullptr;  // GPU backends; borrowed, outlives the model; null: nobody asks
};

// What a model of these limits will take, before anything is allocated.
struct MemoryPlan {
  int64_t weight_bytes = 0;     // as packed, without routed experts; shared by the ranks of a process
  int64_t expert_bytes = 0;     // one rank's slots and spares
  int64_t workspace_bytes = 0;  // one rank's
  int64_t exchange_bytes = 0;   // one rank's
};
Result<MemoryPlan> plan_memory(const ModelConfig& config, const LoadOptions& options);

// What the ranks' exchange must be able to carry. top_k 0: the model has no routed experts.
parallel::ExchangeShape exchange_shape(const ModelConfig& config, const LoadOptions& options);

// Whether the experts' products quantise their rows as an FP8 payload does, so that it changes no result.
bool quantises_expert_rows(const ModelConfig& config, kernels::Backend backend);

// Reads config.json, maps the shards, checks every tensor, packs. Errors name file and fault in one line. The ranks
// share all weights but their experts; only experts that one of them holds are read.
Result<std::vector<std::unique_ptr<Model>>> load_ranks(const LoadOptions& options, std::vector<RankOptions> ranks);
// One rank that holds every expert.
Result<std::unique_ptr<Model>> load_model(const LoadOptions& options);

// Reads and parses DIR/config.json with overrides.
Result<ModelConfig> load_config(const std::string& directory, const std::string& overrides);

// `tandem model show DIR`: shapes, bytes, parameters, as a table.
Result<std::string> describe_checkpoint(const std::string& directory, const std::string& overrides);

}  // namespace tandem::model
