#include "app/resolve_gpu.h"

#include <fmt/format.h>

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

}  // namespace tandem::app
