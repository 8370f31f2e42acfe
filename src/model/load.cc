#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "kernels/moe.h"
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
  if (options.attention_tp_size < 1 || config.num_heads % options.attention_tp_size != 0) {
    return invalid_input(fmt::format("model: {} attention heads cannot be split over {} ranks", config.num_heads,
                                     options.attention_tp_size));
  }
  if (options.experts.payload == parallel::ExchangePayload::kFp8 && is_cuda(options.backend) &&
      !quantises_expert_rows(config, options.backend)) {
    return invalid_input("model: an FP8 payload between GPUs needs tensor cores and experts in FP8 blocks");
  }
  if (options.num_threads < 1) {
    return invalid_input(fmt::format("model: num_threads must be at least 1, is {}", options.num_threads));
  }
  return Ok{};
}

// Fills in what follows from the model: one slot per expert where no topology is given, the trivial placement.
LoadOptions with_placement(const ModelConfig& config, LoadOptions options) {
  ExpertOptions& experts = options.experts;
  if (config.num_routed_experts == 0) return options;
  if (experts.topology.slots_per_rank == 0) {
    experts.topology.slots_per_rank =
        (config.num_routed_experts + experts.topology.num_ranks - 1) / experts.topology.num_ranks;
  }
  if (experts.placement.num_layers == 0 && experts.topology.num_slots() >= config.num_routed_experts) {
    experts.placement =
        experts::trivial_placement(config.num_layers, config.num_routed_experts, experts.topology.num_slots());
  }
  return options;
}

Status check_placement(const ModelConfig& config, const ExpertOptions& experts) {
  if (config.num_routed_experts == 0) return Ok{};
  const experts::ExpertPlacement& placement = experts.placement;
  if (experts.topology.num_slots() < config.num_routed_experts) {
    return invalid_input(fmt::format("{} ranks of {} slots cannot hold {} experts", experts.topology.num_ranks,
                                     experts.topology.slots_per_rank, config.num_routed_experts));
  }
  if (placement.num_layers != config.num_layers || placement.num_logical != config.num_routed_experts) {
    return invalid_input(fmt::format("the expert placement is for {} layers of {} experts, the model has {} of {}",
                                     placement.num_layers, placement.num_logical, config.num_layers,
                                     config.num_routed_experts));
  }
  return experts::validate(placement, experts.topology);
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
  return architecture->plan_memory(config, with_placement(config, options));
}

bool quantises_expert_rows(const ModelConfig& config, kernels::Backend backend) {
  return config.fp8_blocks && config.num_routed_experts > 0 &&
         kernels::takes_fp8_rows(backend, config.hidden_size, config.moe_intermediate_size);
}

parallel::ExchangeShape exchange_shape(const ModelConfig& config, const LoadOptions& options) {
  const LoadOptions complete = with_placement(config, options);
  parallel::ExchangeShape shape;
  shape.num_ranks = complete.experts.topology.num_ranks;
  shape.slots_per_rank = complete.experts.topology.slots_per_rank;
  shape.top_k = config.num_routed_experts > 0 ? config.gate.top_k : 0;
  shape.hidden = config.hidden_size;
  shape.dtype = kernels::Context{options.backend}.act_dtype();
  // A rank dispatches its share of its attention group's tokens.
  shape.max_tokens = parallel::largest_share(options.limits.max_tokens, options.attention_tp_size);
  shape.num_channels = options.experts.two_batches ? 2 : 1;
  shape.max_low_latency_tokens = std::min(options.experts.max_low_latency_tokens, shape.max_tokens);
  shape.payload = options.experts.payload;
  return shape;
}

Result<std::unique_ptr<Model>> load_model(const LoadOptions& options) {
  static const SystemClock clock;
  ASSIGN_OR_RETURN(const ModelConfig config, load_config(options.directory, options.config_overrides));
  RETURN_IF_ERROR(check_limits(config, options));
  std::vector<RankOptions> ranks(1);
  ranks[0].num_threads = options.num_threads;
  ranks[0].clock = &clock;
  const parallel::ExchangeShape shape = exchange_shape(config, options);
  if (is_cuda(options.backend)) {
    ASSIGN_OR_RETURN(device::Stream stream, device::Stream::create());
    ranks[0].stream = std::make_shared<const device::Stream>(std::move(stream));
    if (shape.top_k > 0) ranks[0].exchange = parallel::make_gpu_exchange(shape, options.backend, ranks[0].stream);
  }
  // Alone, a rank never waits.
  if (shape.top_k > 0 && !ranks[0].exchange) {
    ranks[0].exchange = std::move(make_local_exchanges(shape, std::chrono::seconds(1), 0)[0]);
  }
  ASSIGN_OR_RETURN(std::vector<std::unique_ptr<Model>> models, load_ranks(options, std::move(ranks)));
  return std::move(models[0]);
}

Result<std::vector<std::unique_ptr<Model>>> load_ranks(const LoadOptions& given, std::vector<RankOptions> ranks) {
  ASSIGN_OR_RETURN(const ModelConfig config, load_config(given.directory, given.config_overrides));
  const LoadOptions options = with_placement(config, given);
  RETURN_IF_ERROR(check_limits(config, options));
  RETURN_IF_ERROR(check_placement(config, options.experts));
  const Architecture* architecture = find_architecture(config.architecture);
  CHECK(architecture);
  // Lives until the weights are packed; the mapping goes with it.
  ASSIGN_OR_RETURN(const WeightSource source, open_weights(config, *architecture, options));
  report_unused(source.unused(), options.directory);
  return architecture->build(config, source, options, std::move(ranks));
}

}  // namespace tandem::model
