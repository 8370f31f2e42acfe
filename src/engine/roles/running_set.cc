#include "engine/roles/running_set.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "base/log.h"

namespace tandem::engine {
namespace {

scheduler::RunningSequence sequence_of(const Request& request) {
  return {request.prompt_tokens, request.output_tokens(), int32_t(request.block_table.size()), request.max_new_tokens,
          !request.in_step};
}

}  // namespace

RunningSet::RunningSet(Core& core) : core_(core), ratio_(core.config.schedule_conservativeness) {
  running_.reserve(size_t(core.config.max_running_requests));
  sequences_.reserve(size_t(core.config.max_running_requests));
}

void RunningSet::add(Request& request) {
  CHECK(request.state() == scheduler::RequestState::kRunning);
  running_.push_back(&request);
  CHECK(size() <= core_.config.max_running_requests);
}

int32_t RunningSet::make_room(std::span<Request* const> others, const std::function<void(Request&)>& retract) {
  int32_t retracted = 0;
  while (true) {
    sequences_.clear();
    for (const Request* request : running_) sequences_.push_back(sequence_of(*request));
    if (blocks_to_grow(sequences_, core_.config.block_tokens) <= core_.available_blocks()) return retracted;
    for (const Request* request : others) {
      scheduler::RunningSequence sequence = sequence_of(*request);
      sequence.may_retract = request->state() == scheduler::RequestState::kArrived;
      sequences_.push_back(sequence);
    }
    const std::optional<size_t> victim = choose_victim(sequences_);
    if (!victim) return retracted;
    const bool is_other = *victim >= running_.size();
    Request& request = is_other ? *others[*victim - running_.size()] : *running_[*victim];
    if (!is_other) running_.erase(running_.begin() + int64_t(*victim));
    retract(request);
    retracted += 1;
    core_.metrics.retractions.add();
  }
}

void RunningSet::form(Batch& batch, std::span<Request* const> others, const std::function<void(Request&)>& retract) {
  batch.start(model::Phase::kDecode);
  const double before = ratio_.value();
  const int32_t retracted = make_room(others, retract);
  if (retracted > 0) {
    int64_t decoded = 0, longest = 0;
    for (const Request* request : running_) {
      decoded += request->output_tokens();
      longest += request->max_new_tokens;
    }
    ratio_.retracted(decoded, longest, size());
    log::write(log::Level::kInfo, core_.config.log_scope,
               fmt::format("KV cache pool is full. Retract requests. #retracted_reqs: {}, #new_token_ratio: {:.4f} -> "
                           "{:.4f}",
                           retracted, before, ratio_.value()));
  } else if (!running_.empty()) {
    ratio_.decay();
  }
  for (Request* request : running_) {
    if (!core_.grow(*request, request->num_tokens())) continue;  // waits until a transfer gives blocks back
    batch.add(*request, request->num_tokens() - 1, 1, true);
  }
}

void RunningSet::after_step(const Batch& batch, const Sampler& sampler) {
  for (const BatchEntry& entry : batch.entries()) {
    Request& request = *entry.request;
    request.kv_tokens = entry.end_token();
    core_.leave_step(request);
    if (is_terminal(request.state())) continue;
    core_.take_token(request, sampler.result(entry));
  }
}

int64_t RunningSet::expected_growth_blocks() const {
  int64_t blocks = 0;
  for (const Request* request : running_) {
    const int32_t left = std::min(request->max_new_tokens - request->output_tokens(), scheduler::kMaxPlannedOutput);
    const auto expected = int32_t(double(left) * ratio_.value()) + 1;
    blocks += std::max(0, core_.blocks_for(request->num_tokens() + expected) - int32_t(request->block_table.size()));
  }
  return blocks;
}

void RunningSet::forget_ended() {
  std::erase_if(running_, [](const Request* request) { return request->state() != scheduler::RequestState::kRunning; });
}

}  // namespace tandem::engine
