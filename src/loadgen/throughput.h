// Tokens per second per GPU by the two formulas that people mean, and whether the figure may be trusted.
//
//   by step      tokens of one step, summed over the data-parallel ranks / duration of one step / GPUs: how fast the
//                engine is while it steps with this batch. What published figures of large deployments mean.
//   by counters  tokens that were counted in a window / its length / GPUs: what was produced in that time, with every
//                stall in it. What users got.
//
//   logs --read_log()--> LogSummary ----+
//   traces --read_trace()--> TraceSteps-+--> PhaseMeasure --judge()--> ThroughputReport --> format
//   servers --LiveSample x2-------------+
//
// Everything but reading files and asking servers is pure. Any thread; values.
// Source: docs/throughput.md.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace tandem::loadgen {

enum class ServingPhase : uint8_t { kDecode, kPrefill };
const char* to_string(ServingPhase phase);  // "decode", "prefill"

// One data-parallel rank's part in a phase.
struct RankThroughput {
  std::string source = {};  // file or URL
  int32_t rank = 0;
  std::optional<double> tokens_per_step = {};  // decode: #running-req (times the accept length); prefill: new tokens
  std::optional<double> tokens_per_s = {};     // by counters
  // When the counters were looked at, on the source's own clock; absent: not known.
  std::optional<std::pair<double, double>> window_s = {};
};

struct StepTime {
  double seconds = 0;
  std::string how = {};     // where it comes from, in words
  bool independent = true;  // false: worked out of the same rates that the counters give
  double busy_share = 1;    // of the time in which there was something to do; below 1 ranks waited for work
};

// What keeps a figure from being valid.
enum class Doubt : uint8_t {
  kNothingMeasured,  // no line, step or counter of this phase
  kRanksMissing,     // fewer ranks than the server has
  kUnequalWindows,   // ranks were measured at different times
  kZeroThroughput,   // a figure is 0
  kAnotherProfile,   // the trace belongs to a profile that the logs do not know
  kRanksWaited,      // much of the time no step ran: the load was too small
  kFormulasDiffer,   // by more than the tolerance
};
struct Finding {
  Doubt doubt;
  std::string text;
};

// What was read of one phase, before anything is divided.
struct PhaseMeasure {
  ServingPhase phase = ServingPhase::kDecode;
  std::vector<RankThroughput> ranks = {};
  std::optional<StepTime> step = {};
  int32_t expected_ranks = 0;           // 0: not known
  std::vector<Finding> findings = {};   // seen while reading
  std::vector<std::string> notes = {};  // what was left out, and other things to know
};

enum class Verdict : uint8_t {
  kValid,      // both formulas, no finding
  kUnchecked,  // no finding, but nothing independent to compare with
  kInvalid,
};

struct ThroughputReport {
  ServingPhase phase = ServingPhase::kDecode;
  int32_t num_ranks = 0, num_gpus = 0;
  double tokens_per_step = 0;  // of all ranks
  std::optional<StepTime> step;
  std::optional<double> tokens_per_s;          // of all ranks, by counters
  std::optional<double> by_step, by_counters;  // tokens/s/GPU
  std::optional<double> difference;            // by_step / by_counters - 1
  Verdict verdict = Verdict::kUnchecked;
  std::vector<Finding> findings;
  std::vector<std::string> notes;
};

// Pure. num_gpus: above 0. tolerance: largest |difference| of a valid figure.
ThroughputReport judge(const PhaseMeasure& measure, int32_t num_gpus, double tolerance);

// For people, line ends included; and one JSON object per report, as a JSON array with a line end.
std::string format_throughput(const std::vector<ThroughputReport>& reports);
std::string throughput_json(const std::vector<ThroughputReport>& reports);

struct ThroughputConfig {
  // Given by hand: of each rank. One of them only.
  std::vector<int64_t> running_requests;
  std::vector<int64_t> input_tokens;
  std::optional<double> step_ms;
  std::vector<std::string> logs, traces;       // files, also gzipped
  std::vector<std::string> urls;               // instances or routers: asked twice
  std::string authorization;                   // header value for the servers; empty: none
  Duration window = std::chrono::seconds(10);  // between the two samples of servers
  // Of logs: stamps as the logs have them, or seconds from a log's first stamp; empty: the steady part, which is the
  // lines whose batch has at least kSteadyShare of the rank's largest.
  std::string window_begin, window_end;
  std::optional<ServingPhase> phase;  // absent: every phase that anything was read of
  std::optional<int32_t> num_gpus;    // absent: as the ranks' names, files and servers say
  std::optional<int32_t> dp_size;     // ranks that the sum must have
  double tolerance = 0.10;

  Status validate() const;  // one line that names the flag at fault
};
inline constexpr double kSteadyShare = 0.9;

struct ThroughputParts {
  const Clock* clock = nullptr;
  // Waits between two samples of servers; false: asked to stop.
  std::function<bool(Duration)> wait;
};

// Reads everything that the config names. Blocks. Errors: one line that names the file or server and what was
// expected; kCancelled when stopped.
Result<std::vector<ThroughputReport>> measure_throughput(const ThroughputConfig& config, const ThroughputParts& parts);

}  // namespace tandem::loadgen
