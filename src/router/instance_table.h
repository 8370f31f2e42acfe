// InstanceTable: the servers behind a router, what is known of their health and how much they have to do.
// Pure bookkeeping: who asks them and when is the router's business; time is an argument. The loop's thread.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "router/circuit_breaker.h"
#include "router/config.h"
#include "router/rank_loads.h"

namespace tandem::router {

// Never reused, so that an instance that leaves and comes back is a new one.
struct InstanceId {
  uint32_t value = 0;
  auto operator<=>(const InstanceId&) const = default;
};

struct Instance {
  Instance(InstanceId i, InstanceAddress a, std::string h, BreakerConfig config)
      : id(i), address(std::move(a)), host(std::move(h)), breaker(config) {}

  const InstanceId id;
  const InstanceAddress address;  // url normalised: "http://host:port"
  const std::string host;         // what bootstrap_host says
  bool healthy = false;
  bool ever_healthy = false;
  bool removed = false;             // out of the table; requests on it may still run
  int failures = 0, successes = 0;  // of health checks, in a row
  size_t in_flight = 0;
  std::optional<int64_t> load;  // tokens, as last polled
  RankLoads ranks;              // with --dp-aware; empty until the instance has said how many it has
  TimePoint next_check{};
  bool check_running = false;
  CircuitBreaker breaker;
};

class InstanceTable {
 public:
  InstanceTable(HealthConfig health, BreakerConfig breaker) : health_(std::move(health)), breaker_(breaker) {}

  // Errors: the URL is no URL, or it is there already.
  Result<std::shared_ptr<Instance>> add(InstanceAddress address, TimePoint now);
  // Null: not there. Requests in flight on it run on.
  std::shared_ptr<Instance> remove(const std::string& url);
  std::shared_ptr<Instance> find(const std::string& url) const;

  const std::vector<std::shared_ptr<Instance>>& all() const { return instances_; }
  std::vector<std::shared_ptr<Instance>> with_role(Role role) const;
  // Healthy, and its breaker lets a request through.
  std::vector<std::shared_ptr<Instance>> available(Role role, TimePoint now) const;
  size_t healthy_count(Role role) const;

  // A health check came out. True: healthy changed.
  bool note_check(Instance& instance, bool ok, TimePoint now) const;

 private:
  HealthConfig health_;
  BreakerConfig breaker_;
  std::vector<std::shared_ptr<Instance>> instances_;  // shared with the requests in flight
  uint32_t next_id_ = 1;
};

}  // namespace tandem::router
