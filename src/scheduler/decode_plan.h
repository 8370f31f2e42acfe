// Room for decoding: who needs a block, who gives way when there is none, and which new requests a decode server takes
// in. Pure; numbers in, numbers out.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace tandem::scheduler {

struct RunningSequence {
  int32_t prompt_tokens = 0;
  int32_t output_tokens = 0;
  int32_t num_blocks = 0;  // in its table
  int32_t max_new_tokens = 0;
  bool may_retract = true;
  int32_t tokens() const { return prompt_tokens + output_tokens; }
};

// Blocks that the next step needs on top of what each sequence has.
int64_t blocks_to_grow(std::span<const RunningSequence> running, int32_t block_tokens);

// Who gives way: fewest output tokens first, then the longest prompt, then the youngest. Never the last one.
std::optional<size_t> choose_victim(std::span<const RunningSequence> running);

// Share of its remaining max_new_tokens that a running request is expected to use. Starts at 0.7 x conservativeness,
// decays to 14 % of that over 600 decode steps, rises after a retraction.
class NewTokenRatio {
 public:
  explicit NewTokenRatio(double conservativeness);
  double value() const { return value_; }
  void decay();
  // Over the requests that stay: tokens decoded so far, and their max_new_tokens in total.
  void retracted(int64_t decoded_tokens, int64_t max_new_tokens, int64_t num_running);

 private:
  double initial_, minimum_, step_, value_;
};

// Admission of a decode server, in tokens. `reserve` is --num-reserved-decode-tokens.
struct DecodeLoad {
  int64_t free_tokens = 0;
  int64_t retractable_tokens = 0;  // prompt + output of what runs
  int64_t num_running = 0, num_receiving = 0, num_arrived = 0;
  int64_t largest_need = 0;      // max over running of min(max_new, 4096) + prompt; 0: nothing runs
  int64_t retracted_tokens = 0;  // prompt + output of the retracted
  int64_t num_retracted = 0;
};
int64_t allocatable_tokens(const DecodeLoad& load, int64_t reserve);

struct DecodeCandidate {
  int64_t prompt_tokens = 0;  // rounded up to whole blocks
  int64_t max_new_tokens = 0;
};
// What the candidate takes from `allocatable` when it is admitted, nothing when it has to wait. A request that is alone
// is always admitted if it can finish at all: it reserves no more than it may still produce.
std::optional<int64_t> admit(const DecodeCandidate& candidate, int64_t allocatable, int64_t retractable,
                             int64_t reserve);

// Output that planning takes into account: longer requests are rare, and retraction covers them.
inline constexpr int32_t kMaxPlannedOutput = 4096;

}  // namespace tandem::scheduler
