// WeightSource: the tensors an architecture asked for, from a checkpoint or invented. Everything that can be wrong with
// a checkpoint is found when the source is made; reading afterwards cannot fail. Reads are const: any number of
// threads.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "device/buffer.h"
#include "kernels/gemm.h"
#include "model/checkpoint/checkpoint.h"
#include "model/config.h"
#include "model/weights/dummy_weights.h"
#include "model/weights/tensor_spec.h"

namespace tandem::model {

// A matrix ready for kernels::pack. `raw` points into the checkpoint's mapping or into `own`. Reading into the same one
// again reuses its memory.
struct SourceMatrix {
  kernels::RawWeight raw;
  std::vector<uint8_t> own;
  std::vector<float> scales;
};

// Tensors of the checkpoint that the layers which run do not use.
struct UnusedTensors {
  using List = std::vector<const Checkpoint::Tensor*>;
  List surplus;                // nobody knows them: worth a warning
  List next_token_prediction;  // of the prediction module behind the last layer
  List cut_layers;             // of layers that an override of num_hidden_layers cut
  List tied_head;              // lm_head where the embedding serves
};

class WeightSource {
 public:
  // Every spec must be there with its shape and an allowed dtype; errors name directory, tensor and fault.
  static Result<WeightSource> from_checkpoint(Checkpoint checkpoint, std::vector<TensorSpec> specs,
                                              const ModelConfig& config);
  static WeightSource dummy(std::vector<TensorSpec> specs, const ModelConfig& config, uint64_t seed);

  void read_matrix(std::string_view name, SourceMatrix& out) const;  // kProjection, kTable
  std::vector<float> values(std::string_view name) const;            // kGain, kBias, kRouter: as f32

  const std::vector<TensorSpec>& specs() const { return specs_; }
  const UnusedTensors& unused() const { return unused_; }
  const Checkpoint* checkpoint() const { return checkpoint_ ? &*checkpoint_ : nullptr; }  // null: invented
  // Hash over names, shapes, dtypes and the first bytes of every tensor used; of the seed where invented.
  // Continues `hash`.
  uint64_t fingerprint(uint64_t hash) const;

 private:
  explicit WeightSource(std::vector<TensorSpec> specs);
  const TensorSpec& spec(std::string_view name) const;
  Status check_tensor(const TensorSpec& spec, const ModelConfig& config) const;
  Status check_scales(const TensorSpec& spec) const;
  void sort_out_unused(const ModelConfig& config);
  void read_stored(const TensorSpec& spec, SourceMatrix& out) const;
  void invent(const TensorSpec& spec, SourceMatrix& out) const;

  std::vector<TensorSpec> specs_;
  std::unordered_map<std::string_view, const TensorSpec*> by_name_;  // into specs_
  std::optional<Checkpoint> checkpoint_;                             // else dummy_
  std::optional<DummyWeights> dummy_;
  bool fp8_blocks_ = false;
  UnusedTensors unused_;
};

}  // namespace tandem::model
