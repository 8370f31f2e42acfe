// When a failed attempt is made again, and after how long. Pure.
#pragma once

#include <random>

#include "net/http_server.h"
#include "router/config.h"

namespace tandem::router {

// 408 429 500 502 503 504: another pair, or a later moment, may do better.
bool is_retryable(int status);

// What a client is told that is refused because there is no room now.
inline net::Headers retry_after() { return {{"Retry-After", "1"}}; }

// The wait before attempt `next` (2, 3, ...): initial * multiplier^(next - 2), capped, with jitter.
Duration backoff(const RetryConfig& config, int next, std::mt19937_64& random);

}  // namespace tandem::router
