// Counters of live servers at one instant, and what two instants tell. Pure but for sample_servers().
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "loadgen/throughput.h"

namespace tandem::loadgen {

// One data-parallel rank's counters since its start.
struct RankCounters {
  std::string source;  // URL of what was asked, and which of the servers behind it
  int32_t rank = 0;
  ServingPhase main_phase = ServingPhase::kDecode;
  bool combined = false;  // both phases
  double gpus = 1;        // attention tensor parallelism: of the rank
  uint64_t decode_steps = 0, decode_tokens = 0, decode_step_us = 0;
  uint64_t prefill_steps = 0, prefill_tokens = 0, prefill_step_us = 0;
};
struct LiveSample {
  TimePoint at{};
  std::vector<RankCounters> ranks;
};

// The answer of GET /get_server_info: of one server, or of a router over prefill and decode servers. Errors:
// kInvalidInput if it is neither, or if the counters are not there.
Result<std::vector<RankCounters>> parse_server_counters(std::string_view body, const std::string& source);

// Asks every URL. Blocks; not from a loop's thread. Errors name the URL.
Result<LiveSample> sample_servers(const std::vector<std::string>& urls, const std::string& authorization,
                                  const Clock& clock);

// Adds what happened between two samples of the same ranks. A rank that was started anew in between is a finding.
void add_live(const LiveSample& first, const LiveSample& last, PhaseMeasure& measure);

}  // namespace tandem::loadgen
