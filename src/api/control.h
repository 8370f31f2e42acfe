// Bodies and answers of the small endpoints. Pure; errors are kCorrupt (validation form).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace tandem::api {

struct AbortCall {
  std::string rid;  // a prefix of the ids to abort; empty: none
  bool abort_all = false;
};
Result<AbortCall> parse_abort(std::string_view body);

// /slow_down: {"forward_sleep_time": seconds or null}; 0 is as null. Rounded up to whole milliseconds.
struct SlowDownCall {
  uint32_t sleep_ms = 0;
};
Result<SlowDownCall> parse_slow_down(std::string_view body);

// /hold_admission: {"running_requests": per rank, or null, "timeout_s": 300}.
struct HoldCall {
  int32_t running_requests = 0;  // 0: null
  double timeout_s = 300;
};
Result<HoldCall> parse_hold(std::string_view body);

// /rebalance: an algorithm's name, or a placement (the text of an object as --init-expert-location takes), or neither.
struct RebalanceCall {
  std::string algorithm, placement;
};
Result<RebalanceCall> parse_rebalance(std::string_view body);

struct TokenizeCall {
  bool is_batch = false;
  std::vector<std::string> prompts;
  bool add_special_tokens = true;
};
Result<TokenizeCall> parse_tokenize(std::string_view body);
std::string format_tokenize(const TokenizeCall& call, std::span<const std::vector<int32_t>> tokens,
                            int32_t max_model_len);

struct DetokenizeCall {
  bool is_batch = false;
  std::vector<std::vector<int32_t>> tokens;
  bool skip_special_tokens = true;
};
Result<DetokenizeCall> parse_detokenize(std::string_view body);
std::string format_detokenize(const DetokenizeCall& call, std::span<const std::string> texts);

}  // namespace tandem::api
