// The part of resolve() about --device cuda: what it does not have yet, and which decode steps are recorded.
#pragma once

#include "app/resolve.h"

namespace tandem::app {

// Each flag that a GPU's rank cannot follow goes to config.refusals. REQUIRES ranges checked.
void refuse_on_gpu(ResolvedConfig& config);

// Accepted, without anything to do on this device.
inline bool is_idle(const Flag& flag, kernels::Backend backend) {
  const bool is_for_gpus = std::string_view(flag.names).find("cuda-graph") != std::string_view::npos ||
                           std::string_view(flag.names).find("gpu-id") != std::string_view::npos;
  return flag.support == FlagSupport::kHarmless || (is_for_gpus && !is_cuda(backend));
}

// CUDA graphs of a rank that runs at most this many requests at once: --cuda-graph-bs, or SGLang's list of sizes up to
// --cuda-graph-max-bs (256 below --tp-size 4, else 512), and the largest batch itself. None on the CPU, on prefill
// servers and with --disable-cuda-graph.
model::DecodeRecording decode_recording(const ResolvedConfig& config, int32_t max_running_requests);

// Which GPU a rank of this node uses: --base-gpu-id and --gpu-id-step.
int32_t gpu_of(const ResolvedConfig& config, int32_t rank_of_node);

}  // namespace tandem::app
