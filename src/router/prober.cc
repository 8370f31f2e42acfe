#include "router/prober.h"

#include <algorithm>

#include "base/json.h"
#include "base/log.h"

namespace tandem::router {

namespace {

constexpr Duration kTick = std::chrono::milliseconds(50);

// Sum of num_tokens over an instance's ranks; nothing: the answer is not what it should be.
std::optional<int64_t> total_tokens(std::string_view body) {
  auto document = json::Document::parse(body, "/get_load");
  simdjson::dom::array ranks;
  if (!document || document->root().get_array().get(ranks)) return std::nullopt;
  int64_t sum = 0;
  for (auto rank : ranks) {
    int64_t tokens;
    if (rank["num_tokens"].get_int64().get(tokens)) return std::nullopt;
    sum += tokens;
  }
  return sum;
}

// Data-parallel ranks of an instance; 1: it does not say.
size_t num_ranks(std::string_view body) {
  constexpr uint64_t kMost = 4096;
  auto document = json::Document::parse(body, "/get_server_info");
  uint64_t ranks = 1;
  if (!document || document->root()["dp_size"].get_uint64().get(ranks)) return 1;
  return size_t(std::clamp<uint64_t>(ranks, 1, kMost));
}

}  // namespace

Prober::Prober(Fleet& fleet)
    : fleet_(fleet),
      polls_loads_(fleet.config.policy.policy == Policy::kPowerOfTwo ||
                   fleet.config.prefill_policy == Policy::kPowerOfTwo ||
                   fleet.config.decode_policy == Policy::kPowerOfTwo),
      startup_deadline_(fleet.clock.now() + fleet.config.startup_timeout) {}

void Prober::start() { tick(); }

void Prober::tick() {
  const TimePoint now = fleet_.clock.now();
  for (const auto& instance : fleet_.table.all()) {
    if (!instance->check_running && now >= instance->next_check) check(instance);
    if (now > startup_deadline_ && !startup_reported_ && !instance->ever_healthy) {
      log::error("instance={} role={} has not become healthy within {:.0f} s of the start", instance->address.url,
                 to_string(instance->address.role), seconds(fleet_.config.startup_timeout));
    }
  }
  startup_reported_ = now > startup_deadline_;
  if (polls_loads_ && now >= next_load_poll_) poll_loads();
  timer_ = fleet_.loop.after(kTick, [this] { tick(); });
}

void Prober::check(const std::shared_ptr<Instance>& instance) {
  instance->check_running = true;
  Question question;
  question.path = fleet_.config.health.endpoint;
  question.timeout = fleet_.config.health.timeout;
  ask(fleet_, instance, std::move(question), [this](Reply reply) { checked(*reply.instance, reply); });
}

void Prober::checked(Instance& instance, const Reply& reply) {
  instance.check_running = false;
  if (instance.removed) return;
  if (fleet_.table.note_check(instance, reply.ok(), fleet_.clock.now())) {
    if (instance.healthy) {
      log::info("instance={} role={} is healthy", instance.address.url, to_string(instance.address.role));
      if (fleet_.config.dp_aware) ask_ranks(reply.instance);
    } else {
      log::warning("instance={} role={} is out: {}", instance.address.url, to_string(instance.address.role),
                   reply.failure.empty() ? "HTTP " + std::to_string(reply.status) : reply.failure);
    }
  }
  fleet_.metrics.set_health(instance);
  fleet_.update_health_gauges();
}

// An instance that comes back may be another process with other ranks.
void Prober::ask_ranks(const std::shared_ptr<Instance>& instance) {
  Question question;
  question.path = "/get_server_info";
  ask(fleet_, instance, std::move(question), [](Reply reply) {
    if (reply.ok()) reply.instance->ranks.resize(num_ranks(reply.body));
  });
}

void Prober::poll_loads() {
  next_load_poll_ = fleet_.clock.now() + fleet_.config.load_interval;
  for (const auto& instance : fleet_.table.all()) {
    if (!instance->healthy) continue;
    Question question;
    question.path = "/get_load";
    ask(fleet_, instance, std::move(question),
        [](Reply reply) { reply.instance->load = reply.ok() ? total_tokens(reply.body) : std::nullopt; });
  }
}

}  // namespace tandem::router
