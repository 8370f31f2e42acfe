// Fleet: what the parts of one router share. The loop's thread.
#pragma once

#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "net/event_loop.h"
#include "net/http_client.h"
#include "profile/metrics.h"
#include "router/config.h"
#include "router/instance_table.h"
#include "router/pick_pair.h"

namespace tandem::router {

class Relay;

// The instances of one attempt. prefill is null where one plain server does everything.
struct Pair {
  std::shared_ptr<Instance> prefill, decode;
};

struct RouterMetrics {
  explicit RouterMetrics(profile::Metrics& metrics);

  profile::Counter requests(const std::string& route) const;
  profile::Counter errors(const std::string& kind) const;
  profile::Counter processed(const Instance& instance) const;
  void set_health(const Instance& instance) const;

  profile::Metrics& registry;
  profile::Counter retries, hang_ups;
  profile::Gauge running, queued, healthy_prefill, healthy_decode, healthy_plain;
  profile::Histogram duration, first_byte;
};

struct Fleet {
  Fleet(net::EventLoop& l, RouterConfig c, const Clock& k, uint64_t seed, profile::Metrics& m);

  // An instance per role by the policies; those in `avoid` only if there is no other. Null members: none available.
  Pair pick(RoutedPrompt prompt, const std::vector<InstanceId>& avoid);
  bool ready() const;  // a healthy pair, or a healthy plain instance
  void update_health_gauges() const;

  net::EventLoop& loop;
  const RouterConfig config;
  const Clock& clock;
  RouterMetrics metrics;
  std::unique_ptr<net::HttpClient> client;  // gone when the router goes, and every call with it
  InstanceTable table;
  std::mt19937_64 random;
  Picker prefill_picker, decode_picker;  // the latter for plain instances, too
  std::set<Relay*> relays;               // every one that exists, so that a router can end them

 private:
  std::vector<std::shared_ptr<Instance>> candidates(Role role, const std::vector<InstanceId>& avoid) const;
};

}  // namespace tandem::router
