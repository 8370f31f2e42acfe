#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/mapped_file.h"
#include "model/model.h"
#include "model/registry.h"
#include "model/weights/weight_source.h"

namespace tandem::model {

namespace {

Status check_limits(const ModelConfig& config, const LoadOptions& options) {
  const ForwardLimits& limits = options.limits;
  for (const auto& [name, value] :
       {std::pair{"max_tokens", limits.max_tokens}, std::pair{"max_sequences", limits.max_sequences},
        std::pair{"max_logit_rows", limits.max_logit_rows}, std::pair{"max_context", limits.max_context}}) {
    if (value < 1) return invalid_input(fmt::format("model limits: {} must be at least 1, is {}", name, value));
  }
  if (limits.max_context > config.max_position_embeddings) {
    return invalid_input(fmt::format("model limits: max_context {} is more than max_position_embeddings {}",
                                     limits.max_context, config.max_position_embeddings));
  }
  if (options.num_threads < 1) {
    return invalid_input(fmt::format("model: num_threads must be at least 1, is {}", options.num_threads));
  }
  return Ok{};
}

void report_unused(const UnusedTensors& unused, const std::string& directory) {
  if (!unused.surplus.empty()) {
    std::string names;
    for (size_t i = 0; i < std::min<size_t>(unused.surplus.size(), 3); ++i) {
      names += (i ? ", " : "") + unused.surplus[i]->entry->name;
    }
    log::warning("{}: {} tensors are not used by this architecture: {}{}", directory, unused.surplus.size(), names,
                 unused.surplus.size() > 3 ? ", ..." : "");
  }
  if (!unused.next_token_prediction.empty() || !unused.cut_layers.empty()) {
    log::info("{}: left unused: {} tensors of the next-token-prediction module, {} of cut layers", directory,
              unused.next_token_prediction.size(), unused.cut_layers.size());
  }
}

Result<WeightSource> open_weights(const ModelConfig& config, const Architecture& architecture,
                                  const LoadOptions& options) {
  std::vector<TensorSpec> specs = architecture.list_tensors(config);
  if (options.dummy_weights) return WeightSource::dummy(std::move(specs), config, options.seed);
  ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::open(options.directory));
  return WeightSource::from_checkpoint(std::move(checkpoint), std::move(specs), config);
}

}  // namespace

Result<ModelConfig> load_config(const std::string& directory, const std::string& overrides) {
  const std::string path = directory + "/config.json";
  ASSIGN_OR_RETURN(const MappedFile file, MappedFile::open(path));
  return parse_config({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, overrides, path);
}

Result<MemoryPlan> plan_memory(const ModelConfig& config, const LoadOptions& options) {
  RETURN_IF_ERROR(check_limits(config, options));
  const Architecture* architecture = find_architecture(config.architecture);
  CHECK(architecture);
  return architecture->plan_memory(config, options);
}

Result<std::unique_ptr<Model>> load_model(const LoadOptions& options) {
  ASSIGN_OR_RETURN(const ModelConfig config, load_config(options.directory, options.config_overrides));
  RETURN_IF_ERROR(check_limits(config, options));
  const Architecture* architecture = find_architecture(config.architecture);
  CHECK(architecture);
  // Lives until the weights are packed; the mapping goes with it.
  ASSIGN_OR_RETURN(const WeightSource source, open_weights(config, *architecture, options));
  report_unused(source.unused(), options.directory);
  return architecture->build(config, source, options);
}

}  // namespace tandem::model
