#include "engine/roles/combined_worker.h"

#include <algorithm>

#include "base/check.h"

namespace tandem::engine {

using scheduler::RequestState;

Ending ending_of(const CancelCommand& command, bool started) {
  if (command.reason == CancelReason::kStopText) {
    Ending ending;
    ending.finish.kind = api::FinishKind::kStopText;
    ending.finish.matched_text = command.matched_text;
    return ending;
  }
  if (command.reason == CancelReason::kDisconnected) return aborted("Client disconnected.", 0);
  return started ? aborted("Aborted by AbortReq.", 500) : aborted("Abort in waiting queue", 0);
}

CombinedWorker::CombinedWorker(Core& core) : core_(core), prefill_(core), running_(core), reporter_(core) {}

void CombinedWorker::submit(api::EngineRequest input) {
  const bool busy = running_.size() > 0 || prefill_.has_work();
  const bool is_dropped_probe = input.is_health_check && busy;
  Request* request = core_.admit(std::move(input), scheduler::LifeKind::kCombined);
  if (request == nullptr) return;
  if (is_dropped_probe) {
    core_.end(*request, finished_by_length(0));
  } else if (!make_queue_place(*request)) {
    core_.end(*request, aborted("The request queue is full.", 503));
  } else {
    advance(request->life, RequestState::kWaiting, core_.now());
    prefill_.push(*request);
  }
}

// Whether the newcomer may wait; in a full queue the least urgent request makes place for a more urgent one.
bool CombinedWorker::make_queue_place(const Request& newcomer) {
  const int32_t limit = core_.config.max_queued_requests;
  if (limit <= 0 || int64_t(prefill_.num_waiting()) < limit) return true;
  Request* last = prefill_.last_waiting();
  if (core_.urgency(newcomer) <= core_.urgency(*last)) return false;
  core_.end(*last, aborted("The request is aborted by a higher priority request.", 503));
  prefill_.forget_ended();
  return true;
}

void CombinedWorker::cancel(Request& request, const CancelCommand& command) {
  const bool waits = request.state() == RequestState::kWaiting && request.retractions == 0;
  core_.end(request, ending_of(command, !waits));
}

void CombinedWorker::retract(Request& request) {
  core_.release_blocks(request, true);
  request.retractions += 1;
  advance(request.life, RequestState::kWaiting, core_.now());
  prefill_.push_front(request);
}

// When the most urgent waiting request finds no slot or no blocks, running requests that are less urgent by more than
// the threshold give way, the least urgent and youngest first, if that gets it in at all.
void CombinedWorker::preempt() {
  Request* first = prefill_.first_waiting();
  if (!core_.config.priority_scheduling || first == nullptr || prefill_.num_cut() > 0) return;
  std::vector<Request*> less_urgent;
  for (Request* request : running_.requests()) {
    if (core_.urgency(*first) - core_.urgency(*request) > core_.config.preemption_threshold) {
      less_urgent.push_back(request);
    }
  }
  std::ranges::sort(less_urgent, [this](const Request* a, const Request* b) {
    const int64_t urgency_a = core_.urgency(*a), urgency_b = core_.urgency(*b);
    return urgency_a != urgency_b ? urgency_a < urgency_b : a->arrival > b->arrival;
  });
  int64_t slots = core_.config.max_running_requests - running_.size(), blocks = core_.available_blocks();
  const int64_t wanted = prefill_.blocks_to_start(*first);
  size_t count = 0;
  for (; (slots < 1 || blocks < wanted) && count < less_urgent.size(); ++count) {
    slots += 1;
    blocks += int64_t(less_urgent[count]->block_table.size());
  }
  if (slots < 1 || blocks < wanted) return;
  for (size_t i = 0; i < count; ++i) retract(*less_urgent[i]);
  running_.forget_ended();
}

LoadFigures CombinedWorker::load() const {
  LoadFigures load;
  load.running = running_.size();
  load.queued = int32_t(prefill_.num_waiting());
  load.used_tokens = core_.used_tokens();
  load.total_tokens = core_.config.max_total_tokens;
  return load;
}

void CombinedWorker::form(Batch& batch, bool holds_decode) {
  preempt();
  const LoadFigures before = load();
  const int32_t free_slots = core_.config.max_running_requests - running_.size() - prefill_.num_cut();
  if (prefill_.has_work()) {
    const PrefillQueue::Formed formed = prefill_.form(batch, free_slots, running_.expected_growth_blocks());
    if (!batch.empty()) {
      LoadFigures figures = before;
      figures.queued = int32_t(prefill_.num_waiting());
      reporter_.prefill_formed(formed.figures, figures, running_.new_token_ratio());
      return;
    }
  }
  if (holds_decode) return batch.start(model::Phase::kDecode);
  running_.form(batch, {}, [this](Request& victim) { retract(victim); });
}

void CombinedWorker::after_prefill(const Batch& batch, const Sampler& sampler) {
  prefill_.after_forward(batch);
  for (const BatchEntry& entry : batch.entries()) {
    Request& request = *entry.request;
    core_.leave_step(request);
    if (is_terminal(request.state())) continue;
    if (request.kv_tokens < request.num_tokens()) continue;  // the rest of the prompt comes next
    advance(request.life, RequestState::kRunning, core_.now());
    if (request.max_new_tokens == 0) {
      core_.end(request, finished_by_length(0));
    } else if (core_.take_token(request, sampler.result(entry))) {
      running_.add(request);
    }
  }
}

void CombinedWorker::after_step(const Batch& batch, const Sampler& sampler) {
  if (batch.kind() == parallel::StepKind::kExtend) return after_prefill(batch, sampler);
  running_.after_step(batch, sampler);
  running_.forget_ended();
  const auto num_running = int32_t(batch.entries().size());
  reporter_.decode_done(num_running, num_running, load(), running_.new_token_ratio());
}

void CombinedWorker::forget_ended() {
  prefill_.forget_ended();
  running_.forget_ended();
}

}  // namespace tandem::engine
