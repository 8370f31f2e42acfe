// A rank's trace as durations of steps: from Tandem's profiler, or from torch's. Files of hundreds of megabytes are
// read in bounded memory.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "loadgen/throughput.h"
#include "loadgen/throughput/trace_scanner.h"

namespace tandem::loadgen {

// What the steps of a trace were found by, best first.
enum class StepMark : uint8_t {
  kTandemStep,       // events "step" of Tandem's profiler: phase, tokens and sequences are in their args
  kProfilerStep,     // torch: annotations "ProfilerStep#N"
  kRunBatch,         // torch: Python spans "...run_batch"; from one's start to the next's
  kCudaGraphLaunch,  // torch: runtime calls cudaGraphLaunch, one per decode step; from one to the next
};
const char* describe(StepMark mark);

struct TracePhase {
  uint64_t steps = 0;
  double step_s = 0;      // median from a step's start to the next one's; a step's duration where there is only one
  double busy_share = 1;  // of that time in which steps ran; 1 where the trace does not tell
  // Tandem's own traces.
  std::optional<double> tokens_per_step = {};  // mean; decode: sequences
  std::optional<double> tokens_per_s = {};     // tokens of all steps / from the first's start to the last's end
  std::optional<std::pair<double, double>> window_s = {};
};

struct TraceSteps {
  std::string path = {};
  StepMark mark = StepMark::kTandemStep;
  int32_t rank = 0;  // data-parallel, else tensor-parallel, as the file's name says
  std::string profile_id = {};
  // By ServingPhase. A torch trace has one of unknown phase, unless its name says EXTEND or DECODE.
  std::array<std::optional<TracePhase>, 2> phases = {};
  std::optional<TracePhase> unknown = {};
  uint64_t events = 0;
};

// "<prefix>-<id>-TP-3-DP-3-EP-3-DECODE.trace.json.gz", path or not.
struct TraceName {
  std::string profile_id = {};  // unix seconds, with a fraction; empty: the name has none
  int32_t rank = 0;
  std::optional<ServingPhase> stage = {};
};
TraceName parse_trace_name(std::string_view path);

// Thread: one. feed() the (uncompressed) pieces in order, then finish().
class TraceReader {
 public:
  explicit TraceReader(std::string path);
  // Errors: kCorrupt with the position and what was expected.
  Status feed(std::string_view bytes) { return scanner_.feed(bytes); }
  // Errors: as feed; kNotFound if no mark of a step is in the trace: the message says what was looked for.
  Result<TraceSteps> finish();

 private:
  struct Span {
    double begin_us = 0, duration_us = 0;
    uint64_t track = 0;  // hash of process, thread and category
  };
  struct OwnStep {
    double begin_us = 0, duration_us = 0;
    int64_t step = 0, tokens = 0, sequences = 0;
    ServingPhase phase = ServingPhase::kDecode;
    bool idle = false;
  };
  Status take(std::string_view event);
  void take_span(std::string_view name, simdjson::dom::object event, Span span);
  bool take_own(simdjson::dom::object event, const Span& span);
  static std::optional<TracePhase> by_gaps(std::vector<Span> spans);
  std::optional<TracePhase> own_phase(ServingPhase phase) const;

  TraceScanner scanner_;
  std::string path_ = {};
  simdjson::dom::parser parser_;
  std::vector<char> padded_;
  uint64_t events_ = 0;
  std::vector<OwnStep> own_;
  std::array<std::vector<Span>, 4> marks_ = {};  // by StepMark
};

// The file, gzipped or not, through a TraceReader.
Result<TraceSteps> read_trace(const std::string& path);

// Adds what the traces know of measure.phase: the step time, and, where the measure has no ranks yet and the traces are
// Tandem's, batch sizes and rates.
void add_traces(const std::vector<TraceSteps>& traces, bool takes_unknown, PhaseMeasure& measure);

}  // namespace tandem::loadgen
