// The load of one half, on a thread of its own: so many requests at once, until it is told to stop.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "loadgen/measure.h"
#include "loadgen/report.h"
#include "loadgen/runner.h"
#include "workflow/deployment.h"
#include "workflow/verdict.h"

namespace tandem::workflow {

struct LoadShape {
  int32_t at_once = 1;                    // requests under way
  int32_t num_prompts = 1;                // more than will be needed; the load ends by finish()
  int32_t input_len = 1, output_len = 1;  // tokens, the longest
  double range_ratio = 1;                 // shortest / longest of both
  uint64_t seed = 1;
  std::string tokenizer;  // directory; empty: what the server names
};

class Load {
 public:
  // Prompts are made before the thread starts. Errors: no tokenizer, a bad shape.
  static Result<std::unique_ptr<Load>> start(const LoadShape& shape, const Deployment& deployment, const Clock& clock);
  ~Load();  // hangs up what is under way
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;

  // Seconds of the deployment's time at which the first request left; 0 before.
  double begin_s() const { return begin_s_; }
  // No more requests; waits until those under way have ended, at most for `timeout`, then hangs up.
  Result<std::vector<loadgen::RequestResult>> finish(Duration timeout);

 private:
  struct Run;
  Load() = default;
  std::unique_ptr<Run> run_;
  double begin_s_ = 0;
};

// Of the requests that were dispatched from begin_s on and had ended by end_s; seconds since the load's begin.
struct LoadSummary {
  LoadFigures figures;
  loadgen::Spread ttft, itl;  // ms
  std::vector<double> itls_ms;
};
LoadSummary summarize_load(const std::vector<loadgen::RequestResult>& results, double begin_s, double end_s);

}  // namespace tandem::workflow
