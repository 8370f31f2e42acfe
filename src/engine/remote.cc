#include "engine/remote.h"

#include <algorithm>
#include <utility>
#include <variant>

namespace tandem::engine {
namespace {

constexpr uint64_t kMaxAgeUs = uint64_t(1) << 50;  // 35 years: what a peer says fits the clock

EngineSnapshot to_snapshot(const api::RankFigures& f, TimePoint now) {
  EngineSnapshot s;
  s.forward_steps = f.forward_steps;
  if (f.has_progress) s.last_progress = now - std::chrono::microseconds(std::min(f.progress_age_us, kMaxAgeUs));
  s.running = f.running;
  s.queued = f.queued;
  s.prealloc = f.prealloc;
  s.transferring = f.transferring;
  s.retracted = f.retracted;
  s.inflight = f.inflight;
  s.used_tokens = f.used_tokens;
  s.cached_tokens = f.cached_tokens;
  s.total_tokens = f.total_tokens;
  s.waiting_tokens = f.waiting_tokens;
  s.free_blocks = f.free_blocks;
  s.leased_blocks = f.leased_blocks;
  s.cached_blocks = f.cached_blocks;
  s.total_blocks = f.total_blocks;
  s.last_gen_throughput = f.last_gen_throughput;
  s.prompt_tokens_computed = f.prompt_tokens_computed;
  s.handover_bytes = f.handover_bytes;
  s.handovers = f.handovers;
  s.decode_steps = f.decode_steps;
  s.prefill_steps = f.prefill_steps;
  s.generated_tokens = f.generated_tokens;
  s.decode_step_us = f.decode_step_us;
  s.prefill_step_us = f.prefill_step_us;
  s.draining = f.draining;
  s.lost = f.lost;
  s.sleep_ms = f.sleep_ms;
  s.asleep = f.asleep;
  s.held_for = f.held_for;
  s.retractions = f.retractions;
  s.failed_transfers = f.failed_transfers;
  s.profiling = f.profiling;
  return s;
}

api::RankFigures to_figures(const EngineSnapshot& s, TimePoint now) {
  api::RankFigures f;
  f.forward_steps = s.forward_steps;
  f.has_progress = s.last_progress != TimePoint{};
  const auto age = std::chrono::duration_cast<std::chrono::microseconds>(now - s.last_progress);
  if (f.has_progress) f.progress_age_us = uint64_t(std::max<int64_t>(0, age.count()));
  f.running = s.running;
  f.queued = s.queued;
  f.prealloc = s.prealloc;
  f.transferring = s.transferring;
  f.retracted = s.retracted;
  f.inflight = s.inflight;
  f.used_tokens = s.used_tokens;
  f.cached_tokens = s.cached_tokens;
  f.total_tokens = s.total_tokens;
  f.waiting_tokens = s.waiting_tokens;
  f.free_blocks = s.free_blocks;
  f.leased_blocks = s.leased_blocks;
  f.cached_blocks = s.cached_blocks;
  f.total_blocks = s.total_blocks;
  f.last_gen_throughput = s.last_gen_throughput;
  f.prompt_tokens_computed = s.prompt_tokens_computed;
  f.handover_bytes = s.handover_bytes;
  f.handovers = s.handovers;
  f.decode_steps = s.decode_steps;
  f.prefill_steps = s.prefill_steps;
  f.generated_tokens = s.generated_tokens;
  f.decode_step_us = s.decode_step_us;
  f.prefill_step_us = s.prefill_step_us;
  f.draining = s.draining;
  f.lost = s.lost;
  f.sleep_ms = s.sleep_ms;
  f.asleep = s.asleep;
  f.held_for = s.held_for;
  f.retractions = s.retractions;
  f.failed_transfers = s.failed_transfers;
  f.profiling = s.profiling;
  return f;
}

api::EngineEvent abort_event(RequestId id, int32_t prompt_tokens, const std::string& reason, int32_t status_code) {
  api::EngineEvent event;
  event.id = id;
  event.prompt_tokens = prompt_tokens;
  event.finish = api::FinishReason{};
  event.finish->kind = api::FinishKind::kAbort;
  event.finish->status_code = status_code;
  event.finish->message = reason;
  return event;
}

// Of another version of the program a code may be unknown.
Status to_status(const api::NodeProfiled& answer) {
  if (answer.code == 0) return Ok{};
  const int code = answer.code - 1;
  return Error{code <= int(ErrorCode::kCorrupt) ? ErrorCode(code) : ErrorCode::kCorrupt, answer.message};
}

}  // namespace

RemoteRank::RemoteRank(uint32_t rank, const Clock& clock, SendNodeMessage send,
                       std::function<void(api::EngineEvent)> sink)
    : rank_(rank), clock_(clock), send_(std::move(send)), sink_(std::move(sink)) {}

PushResult RemoteRank::submit(Command command) {
  if (auto* request = std::get_if<SubmitCommand>(&command)) return submit_request(std::move(*request));
  if (auto* flush_command = std::get_if<FlushCacheCommand>(&command)) return flush(std::move(*flush_command));
  if (auto* cancel = std::get_if<CancelCommand>(&command)) {
    return send_(api::NodeCancel{rank_, cancel->id, uint8_t(cancel->reason), std::move(cancel->matched_text)});
  }
  if (const auto* slow_down = std::get_if<SlowDownCommand>(&command)) {
    return send_(api::NodeSlowDown{rank_, slow_down->sleep_ms});
  }
  if (const auto* hold = std::get_if<HoldCommand>(&command)) {
    const auto timeout = std::chrono::ceil<std::chrono::milliseconds>(hold->timeout);
    return send_(api::NodeHold{rank_, hold->version, hold->running_requests, uint32_t(timeout.count())});
  }
  if (auto* order = std::get_if<ProfileCommand>(&command)) return profile(std::move(*order));
  return send_(api::NodeDrain{rank_});
}

PushResult RemoteRank::submit_request(SubmitCommand command) {
  const RequestId id = command.request.id;
  const auto prompt_tokens = int32_t(command.request.input_ids.size());
  std::string lost;
  {
    std::lock_guard lock(mutex_);
    lost = lost_;
    if (lost.empty()) open_[id] = prompt_tokens;
  }
  if (!lost.empty()) {
    abort(id, prompt_tokens, lost);
    return PushResult::kPushed;
  }
  const PushResult pushed = send_(api::NodeSubmit{rank_, std::move(command.request)});
  if (pushed == PushResult::kPushed) return pushed;
  bool still_open = false;
  {
    std::lock_guard lock(mutex_);
    still_open = open_.erase(id) > 0;
  }
  return still_open ? pushed : PushResult::kPushed;  // fail() has answered it meanwhile
}

PushResult RemoteRank::flush(FlushCacheCommand command) {
  uint64_t flush_id = 0;
  {
    std::lock_guard lock(mutex_);
    flush_id = next_flush_++;
    if (lost_.empty()) flushes_[flush_id] = command.done;
  }
  const PushResult pushed = send_(api::NodeFlush{rank_, flush_id});
  if (pushed == PushResult::kPushed) return pushed;
  std::lock_guard lock(mutex_);
  flushes_.erase(flush_id);
  return pushed;
}

PushResult RemoteRank::profile(ProfileCommand command) {
  uint64_t order_id = 0;
  std::string lost;
  {
    std::lock_guard lock(mutex_);
    order_id = next_profile_++;
    lost = lost_;
    if (lost.empty()) profiles_[order_id] = command.done;
  }
  if (!lost.empty()) {
    if (command.done) command.done(peer_lost(lost));
    return PushResult::kPushed;
  }
  const PushResult pushed =
      send_(api::NodeProfile{rank_, order_id, uint8_t(command.kind), command.version, std::move(command.call)});
  if (pushed == PushResult::kPushed) return pushed;
  std::lock_guard lock(mutex_);
  return profiles_.erase(order_id) > 0 ? pushed : PushResult::kPushed;  // fail() has answered it meanwhile
}

std::vector<EngineSnapshot> RemoteRank::snapshots() const {
  std::lock_guard lock(mutex_);
  return {snapshot_};
}

void RemoteRank::on_event(api::EngineEvent event) {
  {
    std::lock_guard lock(mutex_);
    const auto known = open_.find(event.id);
    if (known == open_.end()) return;  // it was answered when the node was lost
    if (event.finish) open_.erase(known);
  }
  sink_(std::move(event));
}

void RemoteRank::on_flushed(uint64_t flush_id, bool flushed) {
  std::function<void(bool)> done;
  {
    std::lock_guard lock(mutex_);
    const auto known = flushes_.find(flush_id);
    if (known == flushes_.end()) return;
    done = std::move(known->second);
    flushes_.erase(known);
  }
  if (done) done(flushed);
}

void RemoteRank::on_profiled(const api::NodeProfiled& answer) {
  std::function<void(Status)> done;
  {
    std::lock_guard lock(mutex_);
    const auto known = profiles_.find(answer.order_id);
    if (known == profiles_.end()) return;
    done = std::move(known->second);
    profiles_.erase(known);
  }
  if (done) done(to_status(answer));
}

void RemoteRank::on_figures(const api::RankFigures& figures) {
  const EngineSnapshot snapshot = to_snapshot(figures, clock_.now());
  std::lock_guard lock(mutex_);
  const bool lost = !lost_.empty();
  snapshot_ = snapshot;
  snapshot_.lost |= lost;
}

void RemoteRank::fail(const std::string& reason) {
  std::unordered_map<RequestId, int32_t> open;
  std::unordered_map<uint64_t, std::function<void(bool)>> flushes;
  std::unordered_map<uint64_t, std::function<void(Status)>> profiles;
  {
    std::lock_guard lock(mutex_);
    if (!lost_.empty()) return;
    lost_ = reason;
    snapshot_.lost = true;
    open.swap(open_);
    flushes.swap(flushes_);
    profiles.swap(profiles_);
  }
  for (const auto& [id, prompt_tokens] : open) abort(id, prompt_tokens, reason);
  for (const auto& [id, done] : flushes) {
    if (done) done(false);
  }
  for (const auto& [id, done] : profiles) {
    if (done) done(peer_lost(reason));
  }
}

void RemoteRank::abort(RequestId id, int32_t prompt_tokens, const std::string& reason) {
  sink_(abort_event(id, prompt_tokens, reason, 500));
}

RankHost::RankHost(uint32_t first_rank, std::vector<EngineDoor*> engines, const Clock& clock, SendNodeMessage send)
    : first_rank_(first_rank),
      engines_(std::move(engines)),
      clock_(clock),
      send_(std::move(send)),
      waiting_(engines_.size()) {}

std::function<void(api::EngineEvent)> RankHost::sink(uint32_t rank, SendNodeMessage send) {
  return [rank, send = std::move(send)](api::EngineEvent event) {
    static_cast<void>(send(api::NodeEvent{rank, std::move(event)}));
  };
}

Status RankHost::take(api::NodeMessage message) {
  const auto index_of = [&](uint32_t rank) { return size_t(rank - first_rank_); };  // a lower rank wraps: too large
  const auto to = [&](uint32_t rank, Command command) -> Status {
    if (index_of(rank) >= engines_.size()) {
      return corrupt("a command for rank " + std::to_string(rank) + ", which is not of this node");
    }
    give(index_of(rank), std::move(command));
    return Ok{};
  };
  if (auto* submit = std::get_if<api::NodeSubmit>(&message)) {
    return to(submit->rank, SubmitCommand{std::move(submit->request)});
  }
  if (auto* cancel = std::get_if<api::NodeCancel>(&message)) {
    if (cancel->reason > uint8_t(CancelReason::kStopText)) return corrupt("a cancel of an unknown kind");
    return to(cancel->rank, CancelCommand{cancel->id, CancelReason(cancel->reason), std::move(cancel->matched_text)});
  }
  if (const auto* drain = std::get_if<api::NodeDrain>(&message)) return to(drain->rank, DrainCommand{});
  if (const auto* slow_down = std::get_if<api::NodeSlowDown>(&message)) {
    return to(slow_down->rank, SlowDownCommand{slow_down->sleep_ms});
  }
  if (const auto* hold = std::get_if<api::NodeHold>(&message)) {
    const auto timeout = std::chrono::milliseconds(hold->timeout_ms);
    return to(hold->rank, HoldCommand{hold->version, hold->running_requests, timeout});
  }
  if (const auto* flush = std::get_if<api::NodeFlush>(&message)) {
    return to(flush->rank, FlushCacheCommand{[send = send_, flush = *flush](bool flushed) {
                static_cast<void>(send(api::NodeFlushed{flush.rank, flush.flush_id, flushed}));
              }});
  }
  if (auto* profile = std::get_if<api::NodeProfile>(&message)) {
    if (profile->kind > uint8_t(ProfileCommand::Kind::kStop)) return corrupt("an order to profile of an unknown kind");
    ProfileCommand command{ProfileCommand::Kind(profile->kind), std::move(profile->call), profile->version, {}};
    command.done = [send = send_, rank = profile->rank, order_id = profile->order_id](const Status& status) {
      const uint8_t code = status ? uint8_t(0) : uint8_t(1 + int(status.error().code));
      static_cast<void>(send(api::NodeProfiled{rank, order_id, code, status ? "" : status.error().message}));
    };
    return to(profile->rank, std::move(command));
  }
  return corrupt("a message of type " + std::to_string(message.index() + 1) + " that is no command");
}

// In order: what waits goes first. A request that finds no room is answered at once, as on node 0.
void RankHost::give(size_t index, Command command) {
  const auto* submit = std::get_if<SubmitCommand>(&command);
  if (submit == nullptr) {
    waiting_[index].push_back(std::move(command));
    return retry();
  }
  const RequestId id = submit->request.id;
  const auto prompt_tokens = int32_t(submit->request.input_ids.size());
  const uint32_t rank = first_rank_ + uint32_t(index);
  if (engines_[index]->submit(std::move(command)) == PushResult::kPushed) return;
  static_cast<void>(send_(api::NodeEvent{rank, abort_event(id, prompt_tokens, "The request queue is full.", 503)}));
}

void RankHost::retry() {
  for (size_t i = 0; i < engines_.size(); ++i) {
    while (!waiting_[i].empty() && engines_[i]->submit(waiting_[i].front()) != PushResult::kFull) {
      waiting_[i].pop_front();
    }
  }
}

api::NodeFigures RankHost::figures() const {
  api::NodeFigures figures;
  for (const EngineDoor* engine : engines_) {
    for (const EngineSnapshot& snapshot : engine->snapshots()) {
      figures.ranks.push_back(to_figures(snapshot, clock_.now()));
    }
  }
  return figures;
}

}  // namespace tandem::engine
