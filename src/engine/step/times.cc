#include "engine/step/times.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/roles/decode_worker.h"

namespace tandem::engine {

using scheduler::Lifecycle;
using scheduler::LifeKind;
using scheduler::RequestState;

namespace {

double milliseconds(const Lifecycle& life, RequestState from, RequestState to) {
  return between(life, from, to).value_or(0) * 1e3;
}

std::string unified_durations(const Lifecycle& life) {
  return fmt::format("queue_duration={:.2f}ms, forward_duration={:.2f}ms",
                     milliseconds(life, RequestState::kWaiting, RequestState::kPrefilling),
                     milliseconds(life, RequestState::kPrefilling, life.state));
}

std::string prefill_durations(const Lifecycle& life) {
  return fmt::format(
      "bootstrap_queue_duration({:.2f}ms); queue_duration={:.2f}ms, forward_duration={:.2f}ms, "
      "transfer_duration={:.2f}ms",
      milliseconds(life, RequestState::kBootstrapping, RequestState::kWaiting),
      milliseconds(life, RequestState::kWaiting, RequestState::kPrefilling),
      milliseconds(life, RequestState::kPrefilling, RequestState::kInflight),
      milliseconds(life, RequestState::kInflight, life.state));
}

std::string decode_durations(const Request& request) {
  const Lifecycle& life = request.life;
  const double prealloc = milliseconds(life, RequestState::kPreparing, RequestState::kReserved);
  double bootstrap = 0;
  if (request.sink != nullptr && request.sink->peer_ready_at != TimePoint{}) {
    bootstrap = std::min(seconds(request.sink->peer_ready_at - life.when(RequestState::kPreparing)) * 1e3, prealloc);
  }
  return fmt::format(
      "prealloc_queue_duration({:.2f}ms) = alloc_wait({:.2f}ms) + bootstrap({:.2f}ms) + other(0.00ms); "
      "transfer_duration={:.2f}ms; queue_duration={:.2f}ms, forward_duration={:.2f}ms",
      prealloc, prealloc - bootstrap, bootstrap, milliseconds(life, RequestState::kReserved, RequestState::kArrived),
      milliseconds(life, RequestState::kArrived, RequestState::kRunning),
      milliseconds(life, RequestState::kRunning, life.state));
}

}  // namespace

std::optional<double> between(const Lifecycle& life, RequestState from, RequestState to) {
  if (!life.has_been(from) || !life.has_been(to) || life.when(to) < life.when(from)) return std::nullopt;
  return seconds(life.when(to) - life.when(from));
}

api::RequestTimes times_of(const Request& request) {
  const Lifecycle& life = request.life;
  api::RequestTimes times;
  if (life.kind == LifeKind::kDecode) {
    times.queue_time = between(life, RequestState::kArrived, RequestState::kRunning);
    return times;
  }
  times.queue_time = between(life, RequestState::kWaiting, RequestState::kPrefilling);
  if (!times.queue_time || request.launched_at == TimePoint{}) return times;
  times.prefill_launch_delay = seconds(request.launched_at - life.when(RequestState::kPrefilling));
  if (request.computed_at != TimePoint{}) {
    times.prefill_launch_latency = seconds(request.computed_at - request.launched_at);
  }
  return times;
}

std::string time_stats_line(const Request& request, TimePoint now, double now_unix_s) {
  const Lifecycle& life = request.life;
  const auto& bootstrap = request.input.bootstrap;
  const char* type = "unified";
  std::string durations;
  if (life.kind == LifeKind::kPrefill) {
    type = "prefill";
    durations = prefill_durations(life);
  } else if (life.kind == LifeKind::kDecode) {
    type = "decode";
    durations = decode_durations(request);
  } else {
    durations = unified_durations(life);
  }
  return fmt::format(
      "Req Time Stats(rid={}, bootstrap_room={}, input len={}, output len={}, type={}): {}, start={:.3f}",
      request.input.rid, bootstrap && bootstrap->room ? std::to_string(*bootstrap->room) : "None",
      request.prompt_tokens, request.output_tokens(), type, durations,
      now_unix_s - seconds(now - life.when(RequestState::kNew)));
}

}  // namespace tandem::engine
