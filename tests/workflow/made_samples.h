// Samples of a decode instance that runs without a hitch: the figures of a window of them are known.
#pragma once

#include <vector>

#include "workflow/samples.h"

namespace tandem::workflow {

// One decode instance; running: requests of each rank, each of which gets one token a step. A sample every ten steps.
inline std::vector<Sample> steady_decode(const std::vector<int32_t>& running, double step_ms, int num_samples) {
  std::vector<Sample> samples;
  for (int i = 0; i < num_samples; ++i) {
    Sample sample;
    sample.at_s = i * 10 * step_ms / 1000;
    InstanceSample instance;
    instance.role = Role::kDecode;
    for (int32_t requests : running) {
      RankSample rank;
      rank.running = requests;
      rank.used_tokens = 50;
      rank.total_tokens = 100;
      rank.forward_steps = uint64_t(100 + i * 10);
      rank.generated_tokens = uint64_t(1000 + i * 10 * requests);
      instance.ranks.push_back(rank);
    }
    sample.instances.push_back(std::move(instance));
    samples.push_back(std::move(sample));
  }
  return samples;
}

}  // namespace tandem::workflow
