// The numbers an engine shows: log lines in SGLang's form and the sglang: metrics. Owner: the engine thread.
#pragma once

#include <cstdint>
#include <string>

#include "base/clock.h"
#include "profile/metrics.h"
#include "scheduler/lifecycle.h"

namespace tandem::engine {

// What a line shows besides its own batch.
struct LoadFigures {
  int32_t running = 0, queued = 0;  // #queue-req
  int32_t prealloc = 0, transferring = 0, retracted = 0, inflight = 0;
  int64_t used_tokens = 0, total_tokens = 0;  // not free and not evictable
  int64_t preallocated_tokens = 0;            // of requests in transfer
};

struct PrefillFigures {
  int32_t new_sequences = 0, new_tokens = 0, cached_tokens = 0;
  double input_throughput = 0;  // of the previous batch; PD prefill only
};
// "Prefill batch, ..., ": ends with a comma and a space, as users' scripts expect.
std::string prefill_line(const PrefillFigures& batch, const LoadFigures& load, bool is_pd_prefill);

struct DecodeFigures {
  int32_t running = 0;
  double throughput = 0;
  bool is_recorded = false;  // the step ran as a CUDA graph
};
std::string decode_line(const DecodeFigures& batch, const LoadFigures& load, bool is_pd_decode);

// Tokens per second between two calls.
class RateMeter {
 public:
  void add(int64_t tokens) { tokens_ += tokens; }
  // Tokens added since the last call over the time since then; 0 the first time.
  double take(TimePoint now);

 private:
  int64_t tokens_ = 0;
  TimePoint since_{};
};

class SchedulerMetrics {
 public:
  SchedulerMetrics(profile::Metrics& metrics, const std::string& model_name, int32_t dp_rank, int32_t tp_rank);

  void show(const LoadFigures& load, double gen_throughput, double new_token_ratio, bool is_prefill);
  void show_cache_hit_rate(double rate) { cache_hit_rate_.set(rate); }
  // A request left: its times in queue and in each state.
  void observe_end(const scheduler::Lifecycle& life);
  void handover_done(double gigabytes_per_s, double latency_ms);
  // sleep_seconds: before each step; held_for: requests that decode waits for. 0: full speed.
  void show_pace(double sleep_seconds, int32_t held_for);
  // A batch of this rank's own ran. tokens: drawn by decode, computed by prefill.
  void step_done(bool is_decode, double seconds, int64_t tokens);
  // Totals since the start.
  void show_handovers(uint64_t handovers, uint64_t bytes);

  profile::Counter bootstrap_failed, transfer_failed, digest_mismatches, retractions;

 private:
  profile::Counter handovers_, handover_bytes_, decode_tokens_, prefill_tokens_;
  profile::Histogram decode_step_, prefill_step_;
  profile::Gauge running_, used_tokens_, token_usage_, gen_throughput_, queued_, cache_hit_rate_, total_tokens_,
      retracted_, utilization_, new_token_ratio_, prefill_prealloc_, prefill_inflight_, decode_prealloc_,
      decode_transfer_, transfer_speed_, transfer_latency_, sleep_seconds_, held_for_;
  profile::Histogram queue_time_, stage_bootstrap_, stage_prefill_, stage_inflight_, stage_transfer_, stage_decode_;
};

}  // namespace tandem::engine
