// bench_serving: the serving benchmark, from a config to a report. SGLang's client in flags, measures and output; it
// counts a request whose answer carries an error or ends short as failed, where SGLang's counts every HTTP 200 as a
// success.
#pragma once

#include <functional>
#include <memory>
#include <stop_token>
#include <string_view>

#include "base/clock.h"
#include "base/result.h"
#include "loadgen/bench_config.h"
#include "loadgen/report.h"
#include "text/tokenizer.h"

namespace tandem::loadgen {

struct BenchParts {
  const Clock* clock = nullptr;                      // borrowed
  std::shared_ptr<const text::Tokenizer> tokenizer;  // shared with who already has it; null: found as config says
  std::function<void(std::string_view)> print;       // the report and notes, line ends included; may be empty
  std::function<void(std::string_view)> progress;    // the progress bar or lines (stderr); may be empty
  bool terminal = false;                             // whether progress goes to a terminal
  std::stop_token stop;                              // hangs up everything and returns kCancelled
};

// Blocks: the calling thread runs the load's event loop. Errors: a bad config, a server that cannot be reached, a data
// set that cannot be read, warm-up requests that all fail. Failed requests of the run itself are in the report.
Result<Report> run_bench_serving(const BenchConfig& config, const BenchParts& parts);

}  // namespace tandem::loadgen
