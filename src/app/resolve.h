// From flags, environment and config.json to one resolved configuration: every derived value is computed here, once.
// Touches no device, NIC, port or free memory.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "app/environment.h"
#include "app/flags.h"
#include "engine/engine.h"
#include "engine/expert_balancer.h"
#include "kernels/context.h"
#include "model/model.h"

namespace tandem::app {

struct ResolvedConfig {
  FlagValues flags;
  Environment environment;
  std::string model_directory, tokenizer_directory, served_model_name;
  model::ModelConfig model;
  engine::EngineConfig engine;  // max_total_tokens and max_running_requests 0: decided by the memory plan
  int32_t attn_tp_size = 1, dp_size = 1, ep_size = 1;
  int32_t num_nodes = 1, node_rank = 0;
  int32_t num_ranks = 1;                                 // of this node
  model::ExpertOptions experts;                          // of the whole group
  std::optional<engine::ExpertBalancerConfig> balancer;  // absent: no routed experts
  int32_t max_dispatch_tokens_per_rank = 128;
  std::string ep_dispatch_algorithm;         // "" without redundant experts
  std::vector<std::string> network_devices;  // of everything that talks over UCX, see transport::Context
  double mem_fraction_static = 0;            // 0: not given
  bool dummy_weights = false;
  kernels::Backend backend = kernels::Backend::kCpu;
  kernels::Isa isa = kernels::Isa::kAvx2;
  bool isa_given = false;
  device::DType kv_dtype = device::DType::kF32;  // f32 keeps the gap rule; bf16, FP8: decisions/0005
  std::vector<std::string> warnings;             // printed once at start
  std::vector<std::string> refusals;             // valid, but not in this version: starting fails with these
  std::vector<std::string> missing;  // files that are not here: starting fails with these, checking does not
};

struct ResolveOutcome {
  ResolvedConfig config;
  std::vector<std::string> faults;  // one line each; empty: resolved
};

ResolveOutcome resolve(FlagValues flags, Environment environment);

// What --check-config prints: all flags with their resolved values and, under "derived", what follows from them.
json::Object describe(const ResolvedConfig& config);

}  // namespace tandem::app
