// What an engine is configured with and what it says of itself: pure functions of values.
#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "engine/engine.h"
#include "scheduler/prefill_plan.h"

namespace tandem::engine {
namespace {

// Rows of input log-probabilities that one step computes at most, beside one row per running request.
constexpr int64_t kInputLogprobRows = 128;

}  // namespace

EngineSnapshot combine(std::span<const EngineSnapshot> ranks) {
  CHECK(!ranks.empty());
  EngineSnapshot all = ranks[0];
  for (const EngineSnapshot& rank : ranks.subspan(1)) {
    all.forward_steps = std::min(all.forward_steps, rank.forward_steps);
    all.last_progress = std::min(all.last_progress, rank.last_progress);
    all.running += rank.running;
    all.queued += rank.queued;
    all.prealloc += rank.prealloc;
    all.transferring += rank.transferring;
    all.retracted += rank.retracted;
    all.inflight += rank.inflight;
    all.used_tokens += rank.used_tokens;
    all.cached_tokens += rank.cached_tokens;
    all.total_tokens += rank.total_tokens;
    all.waiting_tokens += rank.waiting_tokens;
    all.free_blocks += rank.free_blocks;
    all.leased_blocks += rank.leased_blocks;
    all.cached_blocks += rank.cached_blocks;
    all.total_blocks += rank.total_blocks;
    all.last_gen_throughput += rank.last_gen_throughput;
    all.prompt_tokens_computed += rank.prompt_tokens_computed;
    all.handover_bytes += rank.handover_bytes;
    all.handovers += rank.handovers;
    all.decode_steps += rank.decode_steps;
    all.prefill_steps += rank.prefill_steps;
    all.generated_tokens += rank.generated_tokens;
    all.decode_step_us += rank.decode_step_us;
    all.prefill_step_us += rank.prefill_step_us;
    all.draining = all.draining || rank.draining;
    all.lost = all.lost || rank.lost;
    all.sleep_ms = std::max(all.sleep_ms, rank.sleep_ms);
    all.asleep = all.asleep || rank.asleep;
    all.held_for = std::max(all.held_for, rank.held_for);
    all.retractions += rank.retractions;
    all.failed_transfers += rank.failed_transfers;
    all.profiling = all.profiling || rank.profiling;
  }
  return all;
}

Status validate(const EngineConfig& config) {
  const auto positive = [](int64_t value, const char* name) -> Status {
    if (value > 0) return Ok{};
    return invalid_input(fmt::format("{} must be positive, got {}", name, value));
  };
  RETURN_IF_ERROR(positive(config.block_tokens, "block_tokens"));
  RETURN_IF_ERROR(positive(config.max_total_tokens, "max_total_tokens"));
  RETURN_IF_ERROR(positive(config.max_running_requests, "max_running_requests"));
  RETURN_IF_ERROR(positive(config.context_length, "context_length"));
  RETURN_IF_ERROR(positive(config.decode_log_interval, "decode_log_interval"));
  if (config.max_total_tokens % config.block_tokens != 0) {
    return invalid_input(fmt::format("max_total_tokens {} is not a multiple of block_tokens {}",
                                     config.max_total_tokens, config.block_tokens));
  }
  if (config.max_prefill_tokens < config.block_tokens) {
    return invalid_input(fmt::format("max_prefill_tokens {} is less than one block of {} tokens",
                                     config.max_prefill_tokens, config.block_tokens));
  }
  if (config.chunked_prefill_size < 0 ||
      (config.chunked_prefill_size > 0 && config.chunked_prefill_size < config.block_tokens)) {
    return invalid_input(fmt::format("chunked_prefill_size {} is neither 0 nor at least one block of {} tokens",
                                     config.chunked_prefill_size, config.block_tokens));
  }
  if (config.num_reserved_decode_tokens < 0) {
    return invalid_input(
        fmt::format("num_reserved_decode_tokens must not be negative, got {}", config.num_reserved_decode_tokens));
  }
  if (config.schedule_conservativeness < 0) {
    return invalid_input(
        fmt::format("schedule_conservativeness must not be negative, got {}", config.schedule_conservativeness));
  }
  return Ok{};
}

parallel::ExchangeMode exchange_mode(const EngineConfig& config, const parallel::StepDecision& decision) {
  const int64_t largest = parallel::largest_share(decision.max_tokens, config.attn_tp_size);
  const bool fits = decision.kind == parallel::StepKind::kDecode && largest <= config.max_low_latency_tokens;
  return fits ? parallel::ExchangeMode::kLowLatency : parallel::ExchangeMode::kNormal;
}

model::ForwardLimits forward_limits(const EngineConfig& config) {
  model::ForwardLimits limits;
  const int64_t prefill = config.role == Role::kDecode
                              ? 0
                              : scheduler::max_step_tokens(config.chunked_prefill_size, config.max_prefill_tokens,
                                                           std::min(config.context_length, config.max_total_tokens));
  limits.max_tokens = std::max<int64_t>(prefill, config.max_running_requests);
  limits.max_sequences = config.max_running_requests;
  const int64_t input_rows =
      config.role == Role::kDecode ? 0 : std::max<int64_t>(kInputLogprobRows, config.block_tokens);
  limits.max_logit_rows = config.max_running_requests + input_rows;
  limits.max_context = config.context_length;
  return limits;
}

}  // namespace tandem::engine
