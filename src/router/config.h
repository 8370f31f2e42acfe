// What a router is told at its start: the values of its flags. Values; any thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace tandem::router {

enum class Policy { kRandom, kRoundRobin, kPowerOfTwo, kCacheAware, kBucket };  // kBucket: prefill only
// "random", "round_robin", "power_of_two" (or "po2"), "cache_aware", "bucket"
Result<Policy> parse_policy(std::string_view name);
const char* to_string(Policy policy);

enum class Role { kPrefill, kDecode, kPlain };   // kPlain: a combined server, when not disaggregated
Result<Role> parse_role(std::string_view name);  // "prefill", "decode", "regular" or "plain"
const char* to_string(Role role);

struct InstanceAddress {
  std::string url;  // "http://host:port"
  Role role = Role::kPlain;
  std::optional<uint16_t> bootstrap_port;  // prefill only; absent is sent as null: the servers' default
};

struct PolicyConfig {
  Policy policy = Policy::kCacheAware;
  double cache_threshold = 0.3;       // matched share of a prompt from which its old place is preferred
  size_t balance_abs_threshold = 64;  // requests in flight; beyond both, load goes before cache
  double balance_rel_threshold = 1.5;
  Duration eviction_interval = std::chrono::seconds(120);
  size_t max_tree_size = size_t(1) << 26;  // bytes of prompt text remembered, per side
};

struct RetryConfig {
  bool enabled = true;
  int max_attempts = 5;  // --retry-max-retries; counts the first
  Duration initial_backoff = std::chrono::milliseconds(50);
  Duration max_backoff = std::chrono::seconds(30);
  double multiplier = 1.5;
  double jitter = 0.2;  // each wait is scaled by 1 - jitter to 1 + jitter
};

struct BreakerConfig {
  bool enabled = true;
  int failure_threshold = 10;                   // failures within `window` that open it
  int success_threshold = 3;                    // trial successes that close it again
  Duration timeout = std::chrono::seconds(60);  // open for this long, then trials
  Duration window = std::chrono::seconds(120);
};

struct HealthConfig {
  int failure_threshold = 3;
  int success_threshold = 2;  // to come back; the very first success suffices
  Duration timeout = std::chrono::seconds(5);
  Duration interval = std::chrono::seconds(60);          // of a healthy instance
  Duration recovery_interval = std::chrono::seconds(1);  // of one that is not (yet): readiness should be noticed soon
  std::string endpoint = "/health";
};

struct RouterConfig {
  std::vector<InstanceAddress> instances;  // more may register later
  bool disaggregated = true;               // pairs of prefill and decode; otherwise plain instances
  PolicyConfig policy;                     // --policy and its thresholds
  std::optional<Policy> prefill_policy, decode_policy;
  // The router chooses the data-parallel rank, too: the one with the fewest sequences. Disaggregated it does so by the
  // room (room modulo ranks is the rank), otherwise by data_parallel_rank.
  bool dp_aware = false;
  RetryConfig retry;
  BreakerConfig breaker;
  HealthConfig health;
  Duration request_timeout = std::chrono::seconds(1800);
  Duration connect_timeout = std::chrono::seconds(5);
  // An instance given at start that has not answered by then is reported as an error; it is still asked on.
  Duration startup_timeout = std::chrono::seconds(1800);
  Duration load_interval = std::chrono::seconds(30);  // /get_load is polled this often when a policy is power_of_two
  int max_concurrent_requests = -1;                   // -1: no limit
  size_t queue_size = 100;                            // requests that wait beyond the limit; more get 429
  Duration queue_timeout = std::chrono::seconds(60);  // 408 after it
  size_t stream_high_water = 1 << 20;            // unsent bytes to a slow client from which its decode stream is paused
  size_t max_buffered_answer = size_t(1) << 30;  // of an answer that is not streamed
  // Clients must send "Authorization: Bearer KEY"; the router's own requests to instances carry it, too. Empty: none.
  std::string api_key;
  std::string admin_api_key;  // of what changes router or servers, which must have the same; see net/access.h

  Status validate() const;
};

}  // namespace tandem::router
