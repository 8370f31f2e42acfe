#include "app/resolve_gpu.h"

#include <fmt/format.h>

#include <algorithm>

namespace tandem::app {

void refuse_on_gpu(ResolvedConfig& config) {
  const FlagValues& flags = config.flags;
  const auto refuse = [&config](bool is_asked, const char* what) {
    if (is_asked) config.refusals.push_back(fmt::format("{} with --device cuda", what));
  };
  refuse(flags.text("disaggregation_mode") != "null", "--disaggregation-mode");
  refuse(flags.integer("tp_size") > 1, "--tp-size above 1");  // and with it attention groups and several nodes
  refuse(flags.enabled("enable_eplb"), "--enable-eplb");
  refuse(flags.has("eplb_spare_slots") && flags.integer("eplb_spare_slots") > 0, "--eplb-spare-slots above 0");
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
  recording.fills_up = !flags.enabled("disable_cuda_graph_padding");
  std::vector<int32_t>& sizes = recording.batch_sizes;
  for (const int64_t size : flags.integers("cuda_graph_bs")) sizes.push_back(int32_t(size));
  if (sizes.empty()) {
    const int64_t by_gpu = flags.integer("tp_size") < 4 ? 256 : 512;
    const int64_t most = flags.has("cuda_graph_max_bs") ? flags.integer("cuda_graph_max_bs") : by_gpu;
    const auto largest = int32_t(std::min<int64_t>(most, max_running_requests));
    sizes = {1, 2, 4, 8, 12};
    for (int32_t size = 16; size < largest; size += size < 256 ? 8 : (size < 512 ? 16 : 32)) sizes.push_back(size);
    sizes.push_back(largest);
  }
  std::erase_if(sizes, [&](int32_t size) { return size > max_running_requests; });
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return recording;
}

}  // namespace tandem::app
