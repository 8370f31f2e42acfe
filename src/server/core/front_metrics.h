// The front end's Prometheus metrics (serving.md 1.9). Updating is cheap; any thread.
#pragma once

#include <string>

#include "profile/metrics.h"

namespace tandem::server {

class FrontMetrics {
 public:
  FrontMetrics(profile::Metrics& metrics, const std::string& model_name);

  profile::Counter prompt_tokens, generation_tokens, cached_tokens, requests, aborted;
  profile::Histogram time_to_first_token, inter_token_latency, e2e_latency, retractions;
};

}  // namespace tandem::server
