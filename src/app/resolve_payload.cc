#include "app/resolve_payload.h"

namespace tandem::app {

// The flag wins over SGLANG_DEEPEP_BF16_DISPATCH.
void resolve_payload(ResolvedConfig& config, std::vector<std::string>& faults) {
  const std::string wanted = config.flags.text("deepep_dispatch_dtype");
  const bool changes_nothing = model::quantises_expert_rows(config.model, config.backend);
  if (wanted == "fp8" && config.environment.bf16_dispatch) {
    config.warnings.push_back("--deepep-dispatch-dtype fp8 is taken, not SGLANG_DEEPEP_BF16_DISPATCH");
  }
  if (wanted == "fp8" && is_cuda(config.backend) && !changes_nothing) {
    faults.push_back(
        "--deepep-dispatch-dtype fp8 with --device cuda needs --kernel-backend tensor and experts in FP8 blocks");
  }
  const bool fp8 = wanted == "fp8" || (wanted == "auto" && changes_nothing && !config.environment.bf16_dispatch);
  config.experts.payload = fp8 ? parallel::ExchangePayload::kFp8 : parallel::ExchangePayload::kAsTheyAre;
  config.flags.set("deepep_dispatch_dtype", fp8 ? "fp8" : "bf16");
}

}  // namespace tandem::app
