#include "router/retry.h"

#include <algorithm>
#include <cmath>

namespace tandem::router {

bool is_retryable(int status) {
  switch (status) {
    case 408:
    case 429:
    case 500:
    case 502:
    case 503:
    case 504: return true;
    default: return false;
  }
}

Duration backoff(const RetryConfig& config, int next, std::mt19937_64& random) {
  const double wait = seconds(config.initial_backoff) * std::pow(config.multiplier, std::max(0, next - 2));
  const double factor = std::uniform_real_distribution<double>(1 - config.jitter, 1 + config.jitter)(random);
  return from_seconds(std::min(wait, seconds(config.max_backoff)) * factor);
}

}  // namespace tandem::router
