// What `tandem reproduce` found, as one value, and its two forms: JSON for programs, a self-contained page for people.
// Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "loadgen/report.h"
#include "workflow/samples.h"
#include "workflow/verdict.h"

namespace tandem::workflow {

// A stage as it went: for the time line and the table.
struct StageRecord {
  std::string name;  // "saturate", "measure", ...
  double begin_s = 0, end_s = 0;
  std::string note;  // one line: what it did or found
  bool failed = false;
};

// Time of one operation in the profiled steps.
struct StepPart {
  std::string name;
  int64_t count = 0;
  double ms_per_step = 0;
};

// Expert load that a recording saw, by the ranks that would have served it.
struct ExpertFigures {
  int32_t num_layers = 0, num_ranks = 0;
  std::vector<double> rank_loads;  // [num_layers, num_ranks] (token, choice) pairs
  double balancedness = 0;         // mean over layers by their load
  std::vector<std::string> files;  // the recorders' dumps
};

// One measurement: a window, what the client saw over it, the trace.
struct Measurement {
  Evidence evidence;
  loadgen::Spread ttft, itl;    // of the requests dispatched and ended under this placement, ms
  std::vector<double> itls_ms;  // of those, for the histogram
  std::vector<StepPart> breakdown;
  std::string trace_file;  // relative to the report; empty: none
  std::optional<ExpertFigures> experts;
  std::vector<Reason> reasons;  // judge(evidence)
};

// The prefill-bound or the decode-bound half.
struct HalfReport {
  std::string name;  // "decode-bound"
  Role role = Role::kDecode;
  std::string split;  // "1 prefill x 1 rank, 1 decode x 2 ranks"
  std::string load;   // "64 requests at once, 128 tokens in, 256 out, 900 in all"
  std::vector<StageRecord> stages;
  std::vector<Sample> samples;               // of all its time
  std::optional<Measurement> before, after;  // after: with the rebalanced placement
};

struct ReproduceReport {
  std::string version, host, started_utc;
  double seconds = 0;
  std::vector<std::string> commands;                               // what a user would type to repeat it by hand
  std::vector<std::pair<std::string, std::string>> configuration;  // flag or fact, value
  std::vector<HalfReport> halves;
  std::vector<std::string> faults;  // what kept a half from being measured at all

  bool valid() const;
  // Of all measurements, each with the half's name in front.
  std::vector<Reason> reasons() const;
};

json::Value report_json(const ReproduceReport& report);
std::string report_html(const ReproduceReport& report);

}  // namespace tandem::workflow
