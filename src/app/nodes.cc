#include "app/nodes.h"

#include <fmt/format.h>

#include <algorithm>

#include "app/signals.h"
#include "experts/placement_hash.h"

namespace tandem::app {
namespace {

// Of one machine or of its logs, or compared in another form below.
constexpr std::string_view kOfOneNode[] = {"admin_api_key",
                                           "api_key",
                                           "base_gpu_id",
                                           "check_config",
                                           "cpu_isa",
                                           "deployment_secret_file",
                                           "device",
                                           "dist_init_addr",
                                           "dist_timeout",
                                           "decode_log_interval",
                                           "drain_timeout",
                                           "enable_metrics",
                                           "gpu_id_step",
                                           "host",
                                           "log_level",
                                           "log_level_http",
                                           "log_requests",
                                           "log_requests_level",
                                           "mem_fraction_static",
                                           "model_path",
                                           "node_rank",
                                           "num_threads",
                                           "port",
                                           "served_model_name",
                                           "skip_server_warmup",
                                           "tokenizer_path",
                                           "watchdog_timeout",
                                           "disaggregation_bootstrap_port",
                                           "disaggregation_ib_device",
                                           "enable_metrics_for_all_schedulers",
                                           "load_watch_interval",
                                           "slurm",
                                           "flight_recorder_dir"};

const char* isa_name(const ResolvedConfig& config) {
  if (config.backend == kernels::Backend::kRef) return "ref";
  switch (config.isa) {
    case kernels::Isa::kAvx2: return "avx2";
    case kernels::Isa::kAvx512: return "avx512";
    case kernels::Isa::kAvx512Bf16: return "avx512_bf16";
  }
  return "?";
}

}  // namespace

std::vector<parallel::AgreedValue> agreed_settings(const ResolvedConfig& config) {
  std::vector<parallel::AgreedValue> agreed;
  agreed.push_back({"the model's config.json (hash)", fmt::format("{:016x}", model::hash_config(config.model))});
  for (const auto& [key, value] : config.flags.all()) {
    std::string field(key);
    if (std::find(std::begin(kOfOneNode), std::end(kOfOneNode), field) != std::end(kOfOneNode)) continue;
    std::replace(field.begin(), field.end(), '_', '-');
    agreed.push_back({"--" + field, json::dump(value)});
  }
  std::sort(agreed.begin() + 1, agreed.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  // A placement may come from a file, which may differ where its path does not.
  if (config.experts.placement.num_layers > 0) {
    agreed.push_back(
        {"the expert placement (hash)", fmt::format("{:016x}", experts::placement_hash(config.experts.placement))});
  }
  // Logits are the same on all nodes only where the kernels are.
  agreed.push_back({"--cpu-isa", isa_name(config)});
  agreed.push_back(
      {"SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK", std::to_string(config.max_dispatch_tokens_per_rank)});
  return agreed;
}

Result<std::shared_ptr<parallel::NodeGroup>> meet_nodes(const ResolvedConfig& config, MemoryPlan& plan,
                                                        const Clock& clock) {
  if (config.num_nodes == 1) return std::shared_ptr<parallel::NodeGroup>();
  const std::string address = config.flags.text("dist_init_addr");
  const size_t colon = address.rfind(':');
  parallel::MeetingOptions options;
  options.num_nodes = config.num_nodes;
  options.node_rank = config.node_rank;
  options.ranks_per_node = config.num_ranks;
  options.host = address.substr(0, colon);
  options.port = uint16_t(std::stoi(address.substr(colon + 1)));
  options.timeout = std::chrono::seconds(config.flags.integer("dist_timeout"));
  options.version = TANDEM_VERSION;
  options.agreed = agreed_settings(config);
  options.devices = config.network_devices;
  options.credentials = {config.environment.deployment_secret, config.engine.epoch};
  options.limits = {plan.max_total_tokens, plan.max_running_requests};
  ASSIGN_OR_RETURN(auto group, parallel::NodeGroup::meet(options, clock, [] { return signals_seen() > 0; }));
  plan.kv_bytes = plan.kv_bytes / plan.max_total_tokens * group->limits()[0];
  plan.max_total_tokens = int32_t(group->limits()[0]);
  plan.max_running_requests = int32_t(group->limits()[1]);
  engine::EngineConfig sized = config.engine;
  sized.max_running_requests = plan.max_running_requests;
  plan.limits = engine::forward_limits(sized);
  return group;
}

}  // namespace tandem::app
