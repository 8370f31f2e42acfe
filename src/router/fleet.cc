#include "router/fleet.h"

#include <algorithm>

namespace tandem::router {

RouterMetrics::RouterMetrics(profile::Metrics& m) : registry(m) {
  retries = m.counter("sgl_router_retries_total", "Attempts after the first one of a request.", {});
  hang_ups = m.counter("sgl_router_hang_ups_total", "Requests whose client went away before the answer's end.", {});
  running = m.gauge("sgl_router_running_requests", "Generation requests being served.", {});
  queued = m.gauge("sgl_router_queued_requests", "Generation requests waiting for a free place.", {});
  auto healthy = [&](const char* role) {
    return m.gauge("sgl_router_active_workers", "Healthy instances.", {{"worker_type", role}});
  };
  healthy_prefill = healthy("prefill");
  healthy_decode = healthy("decode");
  healthy_plain = healthy("regular");
  const std::vector<double> bounds = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1,
                                      2,     5,     10,    20,   50,   100,  200, 500, 1000};
  duration = m.histogram("sgl_router_generate_duration_seconds", "From request to the answer's end.", {}, bounds);
  first_byte = m.histogram("sgl_router_first_byte_seconds", "From request to the first byte of an answer.", {}, bounds);
}

profile::Counter RouterMetrics::requests(const std::string& route) const {
  return registry.counter("sgl_router_requests_total", "Requests by route.", {{"route", route}});
}
profile::Counter RouterMetrics::errors(const std::string& kind) const {
  return registry.counter("sgl_router_request_errors_total", "Failed attempts by kind.", {{"error_type", kind}});
}
profile::Counter RouterMetrics::processed(const Instance& instance) const {
  return registry.counter("sgl_router_processed_requests_total", "Attempts sent to an instance.",
                          {{"worker", instance.address.url}});
}
void RouterMetrics::set_health(const Instance& instance) const {
  registry.gauge("sgl_router_worker_health", "1: healthy.", {{"worker", instance.address.url}})
      .set(instance.healthy ? 1 : 0);
}

namespace {

PolicyConfig with_policy(PolicyConfig config, std::optional<Policy> policy) {
  config.policy = policy.value_or(config.policy);
  return config;
}

}  // namespace

Fleet::Fleet(net::EventLoop& l, RouterConfig c, const Clock& k, uint64_t seed, profile::Metrics& m)
    : loop(l),
      config(std::move(c)),
      clock(k),
      metrics(m),
      client(std::make_unique<net::HttpClient>(l)),
      table(config.health, config.breaker),
      random(seed),
      prefill_picker(with_policy(config.policy, config.prefill_policy), random()),
      decode_picker(with_policy(config.policy, config.decode_policy), random()) {}

std::vector<std::shared_ptr<Instance>> Fleet::candidates(Role role, const std::vector<InstanceId>& avoid) const {
  auto all = table.available(role, clock.now());
  auto fresh = all;
  std::erase_if(fresh, [&](const auto& i) { return std::find(avoid.begin(), avoid.end(), i->id) != avoid.end(); });
  return fresh.empty() ? all : fresh;
}

Pair Fleet::pick(RoutedPrompt prompt, const std::vector<InstanceId>& avoid) {
  auto values = [](const std::vector<std::shared_ptr<Instance>>& instances) {
    std::vector<Candidate> out;
    for (const auto& instance : instances) out.push_back({instance->id, instance->in_flight, instance->load});
    return out;
  };
  auto by_id = [](const std::vector<std::shared_ptr<Instance>>& instances, InstanceId id) {
    return *std::find_if(instances.begin(), instances.end(), [&](const auto& i) { return i->id == id; });
  };
  const TimePoint now = clock.now();
  if (!config.disaggregated) {
    auto plain = candidates(Role::kPlain, avoid);
    auto id = decode_picker.pick(values(plain), prompt, now);
    return {nullptr, id ? by_id(plain, *id) : nullptr};
  }
  auto prefills = candidates(Role::kPrefill, avoid);
  auto decodes = candidates(Role::kDecode, avoid);
  auto choice = pick_pair({prefill_picker, decode_picker}, values(prefills), values(decodes), prompt, now);
  if (!choice) return {};
  return {by_id(prefills, choice->prefill), by_id(decodes, choice->decode)};
}

bool Fleet::ready() const {
  if (!config.disaggregated) return table.healthy_count(Role::kPlain) > 0;
  return table.healthy_count(Role::kPrefill) > 0 && table.healthy_count(Role::kDecode) > 0;
}

void Fleet::update_health_gauges() const {
  metrics.healthy_prefill.set(static_cast<double>(table.healthy_count(Role::kPrefill)));
  metrics.healthy_decode.set(static_cast<double>(table.healthy_count(Role::kDecode)));
  metrics.healthy_plain.set(static_cast<double>(table.healthy_count(Role::kPlain)));
}

}  // namespace tandem::router
