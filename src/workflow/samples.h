// What a deployment says of itself at one moment, and the figures of a measured window of such moments. Pure.
// Source of the numbers: /get_server_info of a router or a server (docs/http-api.md).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace tandem::workflow {

enum class Role : uint8_t { kCombined, kPrefill, kDecode };
const char* role_name(Role role);

// One data-parallel rank. Counters grow from the start of its process.
struct RankSample {
  int32_t running = 0, queued = 0;  // requests
  int32_t prealloc = 0;             // of the queued; decode: those that wait for blocks of the KV pool
  int64_t used_tokens = 0, total_tokens = 0;
  uint64_t generated_tokens = 0;  // counter: output tokens given out by this rank
  uint64_t prompt_tokens = 0;     // counter: tokens that went through a prefill step here
  uint64_t forward_steps = 0;     // counter: batches run, idle ones too
  uint64_t retractions = 0;       // counter
  uint64_t failed_transfers = 0;  // counter: KV handovers that ended without their bytes
};

struct InstanceSample {
  Role role = Role::kCombined;
  bool profiling = false;  // spans are being recorded
  std::vector<RankSample> ranks;
};

struct Sample {
  double at_s = 0;  // from the workflow's start
  std::vector<InstanceSample> instances;
};

// info: the answer of a router ({"prefill": [...], "decode": [...]}) or of one server. Errors name the missing key.
Result<Sample> read_sample(simdjson::dom::element info, double at_s);

// Of the instances of one role over samples[first .. last]: `tokens` are generated ones for decode and combined, prompt
// tokens for prefill.
struct WindowFigures {
  Role role = Role::kDecode;
  double begin_s = 0, end_s = 0;
  int32_t num_ranks = 0;  // GPUs of the role: attention-parallel peers are not counted twice
  double tokens_per_s = 0;
  double per_rank_by_counters = 0;  // tokens_per_s / num_ranks
  // The seeds' way: requests running at once (prefill: tokens of one step) / time of one step / num_ranks.
  double per_rank_by_steps = 0;
  double step_ms = 0;    // mean over instances of window / steps
  double variation = 0;  // standard deviation over mean of the rate in up to ten equal parts, eight steps each at least
  std::vector<double> running;      // [num_ranks] mean of the samples
  std::vector<double> starved;      // [num_ranks] of decode: mean of the requests that waited for blocks
  std::vector<double> rank_tokens;  // [num_ranks] in the window
  double imbalance = 0;             // of running (prefill: of rank_tokens): largest / mean - 1
  double pool_peak = 0;             // largest used / total of any rank and sample
  uint64_t retractions = 0, failed_transfers = 0;
  bool profiled = false;  // in any sample, on any instance

  // By how much the two ways differ, as a share of the counters' figure.
  double disagreement() const;
};

// An instance that ran no step gives nothing. Error: fewer than 11 samples, no instance of the role, or instances that
// came, went or restarted within the window.
Result<WindowFigures> measure(std::span<const Sample> samples, Role role);

}  // namespace tandem::workflow
