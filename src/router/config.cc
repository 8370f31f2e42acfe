#include "router/config.h"

#include <fmt/format.h>

#include <set>

#include "net/http_client.h"

namespace tandem::router {

Result<Policy> parse_policy(std::string_view name) {
  if (name == "random") return Policy::kRandom;
  if (name == "round_robin") return Policy::kRoundRobin;
  if (name == "power_of_two" || name == "po2") return Policy::kPowerOfTwo;
  if (name == "cache_aware") return Policy::kCacheAware;
  if (name == "bucket") return Policy::kBucket;
  return invalid_input(
      fmt::format("policy '{}': one of random, round_robin, power_of_two, cache_aware, bucket is wanted", name));
}

const char* to_string(Policy policy) {
  switch (policy) {
    case Policy::kRandom: return "random";
    case Policy::kRoundRobin: return "round_robin";
    case Policy::kPowerOfTwo: return "power_of_two";
    case Policy::kCacheAware: return "cache_aware";
    case Policy::kBucket: return "bucket";
  }
  return "?";
}

Result<Role> parse_role(std::string_view name) {
  if (name == "prefill") return Role::kPrefill;
  if (name == "decode") return Role::kDecode;
  if (name == "regular" || name == "plain") return Role::kPlain;
  return invalid_input(fmt::format("worker_type '{}': one of prefill, decode, regular is wanted", name));
}

const char* to_string(Role role) {
  switch (role) {
    case Role::kPrefill: return "prefill";
    case Role::kDecode: return "decode";
    case Role::kPlain: return "regular";
  }
  return "?";
}

Status RouterConfig::validate() const {
  std::set<std::string> seen;
  for (const auto& instance : instances) {
    ASSIGN_OR_RETURN(auto url, net::parse_url(instance.url));
    if (!seen.insert(url.origin()).second) {
      return invalid_input(fmt::format("instance {} is given twice", url.origin()));
    }
    if (disaggregated == (instance.role == Role::kPlain)) {
      return invalid_input(fmt::format("instance {} is {}, which does not fit a router that is {}", url.origin(),
                                       to_string(instance.role), disaggregated ? "disaggregated" : "not"));
    }
  }
  if (!disaggregated && policy.policy == Policy::kBucket) {
    return invalid_input("policy bucket is for prefill servers, and this router has none");
  }
  if (disaggregated && decode_policy.value_or(policy.policy) == Policy::kBucket) {
    return invalid_input("policy bucket is for the prefill side: give --prefill-policy bucket");
  }
  auto positive = [](double value, const char* name) -> Status {
    if (value > 0) return Ok{};
    return invalid_input(fmt::format("{} must be positive, got {}", name, value));
  };
  RETURN_IF_ERROR(positive(retry.max_attempts, "retry-max-retries"));
  RETURN_IF_ERROR(positive(retry.multiplier, "retry-backoff-multiplier"));
  RETURN_IF_ERROR(positive(breaker.failure_threshold, "cb-failure-threshold"));
  RETURN_IF_ERROR(positive(breaker.success_threshold, "cb-success-threshold"));
  RETURN_IF_ERROR(positive(health.failure_threshold, "health-failure-threshold"));
  RETURN_IF_ERROR(positive(health.success_threshold, "health-success-threshold"));
  RETURN_IF_ERROR(positive(seconds(health.interval), "health-check-interval-secs"));
  RETURN_IF_ERROR(positive(seconds(health.timeout), "health-check-timeout-secs"));
  RETURN_IF_ERROR(positive(seconds(request_timeout), "request-timeout-secs"));
  RETURN_IF_ERROR(positive(seconds(load_interval), "worker-startup-check-interval"));
  if (retry.jitter < 0 || retry.jitter > 1) return invalid_input("retry-jitter-factor must be within 0 and 1");
  if (policy.cache_threshold < 0 || policy.cache_threshold > 1) {
    return invalid_input("cache-threshold must be within 0 and 1");
  }
  if (max_concurrent_requests == 0 || max_concurrent_requests < -1) {
    return invalid_input(
        fmt::format("max-concurrent-requests must be positive, or -1 for no limit, got {}", max_concurrent_requests));
  }
  if (!health.endpoint.starts_with('/')) return invalid_input("health-check-endpoint must begin with '/'");
  return Ok{};
}

}  // namespace tandem::router
