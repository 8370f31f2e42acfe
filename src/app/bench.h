// Runs the load clients and prints their result; shared by bench_serving and up --bench.
#pragma once

#include "base/result.h"
#include "loadgen/bench_config.h"

namespace tandem::app {

// Runs, prints the result block and the failures. Error: the run could not be made, or not one request succeeded, or
// (with count_failures_as_success off) some failed.
Status run_and_print(const loadgen::BenchConfig& config);

}  // namespace tandem::app
