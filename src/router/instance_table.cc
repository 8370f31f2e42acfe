#include "router/instance_table.h"

#include <fmt/format.h>

#include <algorithm>

#include "net/http_client.h"

namespace tandem::router {

Result<std::shared_ptr<Instance>> InstanceTable::add(InstanceAddress address, TimePoint now) {
  ASSIGN_OR_RETURN(auto url, net::parse_url(address.url));
  address.url = url.origin();
  if (find(address.url)) return invalid_input(fmt::format("instance {} is registered already", address.url));
  auto instance = std::make_shared<Instance>(InstanceId{next_id_++}, std::move(address), url.host, breaker_);
  instance->next_check = now;
  instances_.push_back(instance);
  return instance;
}

std::shared_ptr<Instance> InstanceTable::find(const std::string& url) const {
  auto parsed = net::parse_url(url);
  if (!parsed) return nullptr;
  const std::string origin = parsed->origin();
  for (const auto& instance : instances_) {
    if (instance->address.url == origin) return instance;
  }
  return nullptr;
}

std::shared_ptr<Instance> InstanceTable::remove(const std::string& url) {
  auto instance = find(url);
  if (!instance) return nullptr;
  std::erase(instances_, instance);
  instance->removed = true;
  instance->healthy = false;
  return instance;
}

std::vector<std::shared_ptr<Instance>> InstanceTable::with_role(Role role) const {
  std::vector<std::shared_ptr<Instance>> out;
  for (const auto& instance : instances_) {
    if (instance->address.role == role) out.push_back(instance);
  }
  return out;
}

std::vector<std::shared_ptr<Instance>> InstanceTable::available(Role role, TimePoint now) const {
  std::vector<std::shared_ptr<Instance>> out;
  for (const auto& instance : instances_) {
    if (instance->address.role == role && instance->healthy && instance->breaker.allows(now)) out.push_back(instance);
  }
  return out;
}

size_t InstanceTable::healthy_count(Role role) const {
  return std::count_if(instances_.begin(), instances_.end(),
                       [&](const auto& instance) { return instance->address.role == role && instance->healthy; });
}

bool InstanceTable::note_check(Instance& instance, bool ok, TimePoint now) const {
  const bool before = instance.healthy;
  if (ok && instance.failures > 0) instance.breaker.reset();
  instance.successes = ok ? instance.successes + 1 : 0;
  instance.failures = ok ? 0 : instance.failures + 1;
  if (ok && !instance.healthy) {
    instance.healthy = !instance.ever_healthy || instance.successes >= health_.success_threshold;
  } else if (!ok && instance.healthy) {
    instance.healthy = instance.failures < health_.failure_threshold;
  }
  instance.ever_healthy = instance.ever_healthy || instance.healthy;
  // One that is failing is asked at the quick pace: whether it is out should be known soon, too.
  const bool calm = instance.healthy && ok;
  instance.next_check = now + (calm ? health_.interval : std::min(health_.interval, health_.recovery_interval));
  return instance.healthy != before;
}

}  // namespace tandem::router
