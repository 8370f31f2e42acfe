#include "app/resolve_gpu.h"

#include <fmt/format.h>

#include <algorithm>

namespace tandem::app {

void refuse_on_gpu(ResolvedConfig& config) {
  const FlagValues& flags = config.flags;
  const auto refuse = [&config](bool is_asked, const char* what) {
    if (is_asked) config.refusals.push_back(fmt::format("{} with --device cuda", what));
  };
  refuse(flags.integer("nnodes") > 1, "--nnodes above 1");
  const bool is_split = flags.integer("tp_size") > flags.integer("dp_size") || !flags.enabled("enable_dp_attention");
  refuse(flags.integer("tp_size") > 1 && is_split, "--tp-size above --dp-size, or without --enable-dp-attention,");
  refuse(flags.enabled("enable_two_batch_overlap"), "--enable-two-batch-overlap");
  // A GPU counts experts, not the slots that tokens went to.
  const bool has_mode = flags.has("expert_distribution_recorder_mode");
  const std::string mode = has_mode ? flags.text("expert_distribution_recorder_mode") : "stat";
  if (mode == "per_pass" || mode == "per_token") refuse(true, ("--expert-distribution-recorder-mode " + mode).c_str());
  refuse(flags.enabled("enable_expert_distribution_metrics"), "--enable-expert-distribution-metrics");
}

model::DecodeRecording decode_recording(const ResolvedConfig& config, int32_t max_running_requests) {
  const FlagValues& flags = config.flags;
  model::DecodeRecording recording;
  if (!is_cuda(config.backend) || flags.enabled("disable_cuda_graph") || config.engine.role == engine::Role::kPrefill) {
    return recording;
  }
  const int32_t low_latency = config.engine.max_low_latency_tokens;
  if (low_latency > 0) recording.exchange_mode = parallel::ExchangeMode::kLowLatency;
  recording.fills_up = !flags.enabled("disable_cuda_graph_padding");
  std::vector<int32_t>& sizes = recording.batch_sizes;
  for (const int64_t size : flags.integers("cuda_graph_bs")) sizes.push_back(int32_t(size));
  if (sizes.empty()) {
    const int64_t by_gpu = flags.integer("tp_size") < 4 ? 256 : 512;
    const int64_t wanted = flags.has("cuda_graph_max_bs") ? flags.integer("cuda_graph_max_bs") : by_gpu;
    const auto largest = int32_t(std::min<int64_t>(wanted, max_running_requests));
    sizes = {1, 2, 4, 8, 12};
    for (int32_t size = 16; size < largest; size += size < 256 ? 8 : (size < 512 ? 16 : 32)) sizes.push_back(size);
    sizes.push_back(largest);
  }
  // What the low-latency exchange does not take is exchanged, and sent, otherwise.
  const bool is_alone = config.num_ranks == 1;
  const int32_t most =
      low_latency > 0 && !is_alone ? std::min(max_running_requests, low_latency) : max_running_requests;
  std::erase_if(sizes, [most](int32_t size) { return size > most; });
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return recording;
}

int32_t gpu_of(const ResolvedConfig& config, int32_t rank_of_node) {
  return int32_t(config.flags.integer("base_gpu_id") + rank_of_node * config.flags.integer("gpu_id_step"));
}

}  // namespace tandem::app
