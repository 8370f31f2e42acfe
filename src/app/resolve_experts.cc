#include "app/resolve_experts.h"

#include <fmt/format.h>

#include "app/resolve_payload.h"
#include "experts/balance.h"
#include "experts/files.h"

namespace tandem::app {
namespace {

// The placement at start: as given, or planned from given loads.
void resolve_location(ResolvedConfig& config, std::vector<std::string>& faults) {
  constexpr const char* kFlag = "--init-expert-location: ";
  const experts::EpTopology& topology = config.experts.topology;
  const experts::ExpertShape want{config.model.num_layers, config.model.num_routed_experts, topology.num_slots()};
  Result<experts::InitExpertLocation> location =
      experts::read_init_expert_location(config.flags.text("init_expert_location"), want);
  if (!location) {
    const std::string line = kFlag + location.error().message;
    (location.error().code == ErrorCode::kNotFound ? config.missing : faults).push_back(line);
    return;
  }
  if (auto* given = std::get_if<experts::PlacementFile>(&*location)) {
    config.experts.placement = std::move(given->placement);
  } else if (const auto* load = std::get_if<experts::LoadFile>(&*location)) {
    Result<experts::BalanceAlgorithm> algorithm = experts::find_balance_algorithm(config.balancer->algorithm);
    const experts::BalanceProblem problem{{&load->load, 1}, topology, config.model.gate.num_groups};
    Result<experts::ExpertPlacement> plan =
        algorithm ? plan_experts(*algorithm, problem) : Result<experts::ExpertPlacement>(algorithm.error());
    if (!plan) return faults.push_back(kFlag + plan.error().message);
    config.experts.placement = std::move(*plan);
  } else if (topology.num_slots() >= config.model.num_routed_experts) {
    config.experts.placement = experts::trivial_placement(want.num_layers, want.num_logical, want.num_slots);
  }
  if (config.experts.placement.num_layers == 0) return;
  if (Status valid = validate(config.experts.placement, topology); !valid) {
    faults.push_back(kFlag + valid.error().message);
  }
}

}  // namespace

void resolve_expert_balancing(ResolvedConfig& config, std::vector<std::string>& faults) {
  resolve_payload(config, faults);
  const FlagValues& flags = config.flags;
  engine::ExpertBalancerConfig& balancer = config.balancer.emplace();
  const bool periodic = flags.enabled("enable_eplb");
  const std::string mode =
      flags.has("expert_distribution_recorder_mode") ? flags.text("expert_distribution_recorder_mode") : "stat";
  const bool measures = flags.enabled("enable_expert_distribution_metrics");
  // Single passes are kept, and measured, in one process.
  const std::string apart = fmt::format(" with --nnodes {}", config.num_nodes);
  if (config.num_nodes > 1 && mode != "stat" && mode != "stat_approx") {
    config.refusals.push_back("--expert-distribution-recorder-mode " + mode + apart);
  }
  if (config.attn_tp_size > 1 && mode == "per_token") {
    config.refusals.push_back("--expert-distribution-recorder-mode per_token with attention tensor parallelism");
  }
  if (config.num_nodes > 1 && measures) config.refusals.push_back("--enable-expert-distribution-metrics" + apart);
  balancer.topology = config.experts.topology;
  balancer.dispatch = config.experts.dispatch;
  balancer.num_groups = config.model.gate.num_groups;
  const std::string algorithm = flags.text("eplb_algorithm");
  balancer.algorithm = algorithm == "auto" ? "tandem" : algorithm;
  balancer.is_periodic = periodic;
  balancer.steps_between = flags.integer("eplb_rebalance_num_iterations");
  balancer.skip_above = flags.number("eplb_min_rebalancing_utilization_threshold");
  balancer.target = flags.number("eplb_target");
  if (flags.has("eplb_rebalance_layers_per_chunk")) {
    balancer.layers_per_version = int32_t(flags.integer("eplb_rebalance_layers_per_chunk"));
  }
  if (flags.enabled("enable_eplb_rebalance_async")) balancer.bytes_per_step = flags.integer("eplb_bytes_per_step");
  balancer.recorder_steps = flags.has("expert_distribution_recorder_buffer_size")
                                ? flags.integer("expert_distribution_recorder_buffer_size")
                                : balancer.steps_between;
  if (balancer.recorder_steps == 0)
    faults.push_back("--expert-distribution-recorder-buffer-size 0: wanted passes, or -1");
  // Hits are exact in every mode, so stat_approx is stat.
  if (mode == "per_pass") balancer.recorder_mode = engine::RecorderMode::kPerPass;
  if (mode == "per_token") balancer.recorder_mode = engine::RecorderMode::kPerToken;
  balancer.logs_balancedness = measures;
  balancer.heatmap_interval = config.environment.heatmap_interval;
  balancer.records_at_start = (periodic && config.num_nodes == 1) || measures;
  balancer.experts_per_token = config.model.gate.top_k;
  balancer.dump_directory = config.environment.recorder_directory;
  balancer.model_name = config.served_model_name;
  const int64_t spares = flags.has("eplb_spare_slots") ? flags.integer("eplb_spare_slots") : periodic ? 8 : 0;
  config.experts.spare_slots = int32_t(spares);
  if (periodic && spares == 0)
    faults.push_back("--enable-eplb needs at least one spare slot, got --eplb-spare-slots 0");
  if (faults.empty()) resolve_location(config, faults);
}

}  // namespace tandem::app
