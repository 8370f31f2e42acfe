// When a failed attempt is made again, and after how long. Pure.
#pragma once

#include <random>

#include "router/config.h"

namespace tandem::router {

// 408 429 500 502 503 504: another pair, or a later moment, may do better.
bool is_retryable(int status);

// The wait before attempt `next` (2, 3, ...): initial * multiplier^(next - 2), capped, with jitter.
Duration backoff(const RetryConfig& config, int next, std::mt19937_64& random);

}  // namespace tandem::router
