#include "scheduler/decode_plan.h"

#include <algorithm>
#include <tuple>

namespace tandem::scheduler {

int64_t blocks_to_grow(std::span<const RunningSequence> running, int32_t block_tokens) {
  int64_t blocks = 0;
  for (const RunningSequence& sequence : running) {
    const int32_t wanted = (sequence.tokens() + block_tokens - 1) / block_tokens;
    blocks += std::max(0, wanted - sequence.num_blocks);
  }
  return blocks;
}

std::optional<size_t> choose_victim(std::span<const RunningSequence> running) {
  if (running.size() < 2) return std::nullopt;
  std::optional<size_t> victim;
  const auto rank = [&](size_t i) {
    return std::tuple(running[i].output_tokens, -running[i].prompt_tokens, -int64_t(i));
  };
  for (size_t i = 0; i < running.size(); ++i) {
    if (running[i].may_retract && (!victim || rank(i) < rank(*victim))) victim = i;
  }
  return victim;
}

NewTokenRatio::NewTokenRatio(double conservativeness)
    : initial_(std::min(1.0, 0.7 * conservativeness)),
      minimum_(initial_ * 0.14),
      step_((initial_ - minimum_) / 600),
      value_(initial_) {}

void NewTokenRatio::decay() { value_ = std::max(minimum_, value_ - step_); }

void NewTokenRatio::retracted(int64_t decoded_tokens, int64_t max_new_tokens, int64_t num_running) {
  value_ = std::min(1.0, double(decoded_tokens + 20 * num_running) / double(max_new_tokens + 1));
}

int64_t allocatable_tokens(const DecodeLoad& load, int64_t reserve) {
  const int64_t reserved = reserve * (load.num_running + load.num_receiving + load.num_arrived);
  const int64_t one_must_finish = load.num_running > 0 ? load.largest_need - load.retractable_tokens : 0;
  return load.free_tokens - std::max(reserved, one_must_finish) - load.retracted_tokens - reserve * load.num_retracted;
}

std::optional<int64_t> admit(const DecodeCandidate& candidate, int64_t allocatable, int64_t retractable,
                             int64_t reserve) {
  const int64_t taken = candidate.prompt_tokens + std::min(reserve, candidate.max_new_tokens);
  const int64_t to_finish =
      candidate.prompt_tokens + std::min<int64_t>(candidate.max_new_tokens, kMaxPlannedOutput) - retractable;
  if (std::max(taken, to_finish) > allocatable) return std::nullopt;
  return taken;
}

}  // namespace tandem::scheduler
