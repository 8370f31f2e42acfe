// The commands of the binary. Each takes its arguments without program and command name and returns the exit status:
// 0 done, 1 failed while running, 2 wrong flags or input (one line on stderr says which).
#pragma once

#include <span>
#include <string>
#include <vector>

namespace tandem::app {

using Args = std::span<const std::string>;

int run_command(const std::vector<std::string>& args);

int launch_server(Args args);
int run_router(Args args);
int run_mini_lb(Args args);  // the old load balancer's spelling: port 8000, random policy
int run_bench_serving(Args args);
int run_bench_one_batch(Args args);
int run_bench_rank(Args args);
int run_up(Args args);
int run_reproduce(Args args);
int run_model(Args args);
int run_experts(Args args);
int run_slow_down(Args args);
int run_throughput(Args args);
int run_doctor(Args args);
int run_profile(Args args);
int run_explain(Args args);

}  // namespace tandem::app
