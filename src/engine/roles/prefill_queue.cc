#include "engine/roles/prefill_queue.h"

#include <algorithm>

#include "base/check.h"
#include "base/log.h"
#include "scheduler/decode_plan.h"

namespace tandem::engine {

using scheduler::RequestState;

namespace {

// Longest-prefix ordering looks every prompt up; with many waiting it would cost more than it gives (as in SGLang).
constexpr size_t kMaxOrdered = 128;

}  // namespace

void PrefillQueue::push(Request& request) { core_.enqueue(waiting_, request); }
void PrefillQueue::push_front(Request& request) { core_.enqueue(waiting_, request, true); }

int64_t PrefillQueue::blocks_to_start(const Request& request) const {
  const scheduler::PrefillCandidate wanted = candidate(request);
  return int64_t(wanted.blocks_needed) + wanted.growth_blocks + wanted.pinned_blocks;
}

int64_t PrefillQueue::waiting_tokens() const {
  int64_t tokens = 0;
  for (const Request* request : waiting_) tokens += request->num_tokens();
  return tokens;
}

int64_t PrefillQueue::growth_tokens(const Request& request) const {
  if (core_.config.role == Role::kPrefill) return 0;
  return std::min(request.max_new_tokens - request.output_tokens(), scheduler::kMaxPlannedOutput);
}

scheduler::PrefillCandidate PrefillQueue::candidate(const Request& request) const {
  scheduler::PrefillCandidate candidate;
  const int32_t tokens = request.num_tokens();
  int32_t done = request.kv_tokens;
  if (&request == cut_) {
    candidate.started = true;
  } else {
    const int32_t matched = core_.match_prefix(request);
    done = matched * core_.config.block_tokens;
    candidate.blocks_needed = core_.blocks_for(tokens) - matched;
    candidate.growth_blocks = core_.blocks_for(tokens + int32_t(growth_tokens(request))) - core_.blocks_for(tokens);
    candidate.pinned_blocks = matched;  // an upper bound: others may hold some of them already
  }
  candidate.num_tokens = tokens - done;
  if (request.wants_input_logprobs()) {
    candidate.wants_rows = true;
    candidate.tokens_before_rows = std::max(0, request.first_logprob_position() - done);
  }
  return candidate;
}

std::vector<size_t> PrefillQueue::order() {
  const EngineConfig& config = core_.config;
  const bool orders_by_prefix = config.policy == SchedulePolicy::kLpm || config.policy == SchedulePolicy::kDfsWeight;
  const bool fcfs =
      config.policy == SchedulePolicy::kFcfs || (orders_by_prefix && (!core_.tree || waiting_.size() > kMaxOrdered));
  if (fcfs) {
    const size_t enough = std::min(waiting_.size(), size_t(config.max_running_requests));
    return order_waiting(scheduler::WaitingOrder::kFcfs, std::vector<scheduler::WaitingRank>(enough), 0);
  }
  std::vector<scheduler::WaitingRank> ranks(waiting_.size());
  if (config.policy == SchedulePolicy::kDfsWeight) {
    std::vector<std::span<const int32_t>> prompts;
    for (const Request* request : waiting_) prompts.emplace_back(request->tokens);
    return core_.tree->dfs_weight_order(prompts);
  }
  for (size_t i = 0; i < waiting_.size(); ++i) {
    ranks[i].max_new_tokens = waiting_[i]->max_new_tokens;
    if (config.policy == SchedulePolicy::kLpm) ranks[i].cached_tokens = core_.match_prefix(*waiting_[i]);
  }
  scheduler::WaitingOrder order = scheduler::WaitingOrder::kLof;
  if (config.policy == SchedulePolicy::kLpm) order = scheduler::WaitingOrder::kLpm;
  if (config.policy == SchedulePolicy::kRandom) order = scheduler::WaitingOrder::kRandom;
  std::vector<size_t> ordered = order_waiting(order, ranks, config.seed + orders_++);
  std::ranges::stable_sort(ordered, std::greater<>(), [this](size_t i) { return core_.urgency(*waiting_[i]); });
  return ordered;
}

void PrefillQueue::start(Request& request, Formed& formed) {
  const Status reserved = core_.reserve(request, request.num_tokens());
  CHECK(reserved.has_value());  // the plan counted these blocks
  advance(request.life, RequestState::kPrefilling, core_.now());
  if (request.retractions == 0) request.cached_tokens = request.kv_tokens;
  core_.prompt_tokens_cached += uint64_t(request.kv_tokens);
  if (request.wants_input_logprobs() && request.input_logprobs.empty()) {
    // The first reported input token has nothing before it to be predicted from.
    api::TokenLogprob first;
    first.token = request.tokens[size_t(request.first_logprob_position())];
    first.present = false;
    request.input_logprobs.push_back(first);
  }
  formed.figures.new_sequences += 1;
  formed.figures.cached_tokens += request.kv_tokens;
  formed.started.push_back(&request);
}

PrefillQueue::Formed PrefillQueue::form(Batch& batch, int32_t free_slots, int64_t reserved_blocks) {
  Formed formed;
  batch.start(model::Phase::kPrefill);
  if (cut_ == nullptr && (waiting_.empty() || free_slots < 1)) return formed;
  const EngineConfig& config = core_.config;
  const model::ForwardLimits limits = forward_limits(config);
  // Only as many candidates as could fit are looked up.
  std::vector<Request*> requests;
  std::vector<scheduler::PrefillCandidate> candidates;
  int64_t tokens = 0;
  const auto consider = [&](Request* request) {
    requests.push_back(request);
    candidates.push_back(candidate(*request));
    tokens += candidates.back().num_tokens;
  };
  if (cut_ != nullptr) consider(cut_);
  for (const size_t index : order()) {
    const bool enough = tokens >= limits.max_tokens || int64_t(requests.size()) >= limits.max_sequences;
    if (enough) break;
    consider(waiting_[index]);
  }
  scheduler::PrefillLimits budget;
  budget.chunk_tokens = config.chunked_prefill_size;
  budget.max_prefill_tokens = config.max_prefill_tokens;
  budget.block_tokens = config.block_tokens;
  budget.free_slots = free_slots;
  budget.available_blocks = core_.available_blocks();
  budget.reserved_blocks = reserved_blocks;
  budget.logit_rows = int32_t(limits.max_logit_rows);
  const scheduler::PrefillPlan plan = plan_prefill(candidates, budget);
  Request* cut = nullptr;
  for (const scheduler::PrefillChunk& chunk : plan.chunks) {
    Request& request = *requests[size_t(chunk.candidate)];
    if (&request != cut_) core_.hold_prefix(request);
  }
  for (const scheduler::PrefillChunk& chunk : plan.chunks) {
    Request& request = *requests[size_t(chunk.candidate)];
    if (&request != cut_) start(request, formed);
    const bool samples = chunk.completes && request.max_new_tokens > 0;
    CHECK(chunk.completes == (request.kv_tokens + chunk.num_tokens == request.num_tokens()));
    batch.add(request, request.kv_tokens, chunk.num_tokens, samples);
    const int32_t block = config.block_tokens;
    formed.figures.new_tokens += (chunk.num_tokens + block - 1) / block * block;
    if (!chunk.completes) cut = &request;
  }
  if (!plan.chunks.empty()) {
    cut_ = cut;
    std::erase_if(waiting_, [](const Request* request) { return request->state() != RequestState::kWaiting; });
  }
  return formed;
}

void PrefillQueue::before_forward(const Batch& batch) {
  for (const BatchEntry& entry : batch.entries()) {
    if (entry.request->launched_at == TimePoint{}) entry.request->launched_at = core_.now();
  }
}

void PrefillQueue::after_forward(const Batch& batch) {
  for (const BatchEntry& entry : batch.entries()) {
    Request& request = *entry.request;
    request.kv_tokens = entry.end_token();
    core_.prompt_tokens_computed += uint64_t(entry.num_tokens);
    const bool complete = request.kv_tokens == request.num_tokens();
    if (complete && request.computed_at == TimePoint{}) request.computed_at = core_.now();
    if (complete && core_.tree) {
      const std::span<const int32_t> computed(request.tokens.data(), size_t(request.kv_tokens));
      core_.tree->adopt(computed, request.prefix, request.lease);
    }
  }
}

void PrefillQueue::forget_ended() {
  const auto ended = [](const Request* request) { return is_terminal(request->state()); };
  std::erase_if(waiting_, ended);
  if (cut_ != nullptr && ended(cut_)) cut_ = nullptr;
}

}  // namespace tandem::engine
