#include "workflow/verdict.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace tandem::workflow {
namespace {

std::string percent(double share) { return fmt::format("{:.1f} %", share * 100); }

void judge_outputs(const LoadFigures& load, std::vector<Reason>& reasons) {
  if (load.output_tokens == 0) {
    reasons.push_back({"zero_output", fmt::format("{} requests ended, not one gave a token", load.completed)});
  }
  if (load.short_outputs > 0) {
    reasons.push_back(
        {"short_output", fmt::format("{} requests ended before the length asked for{}", load.short_outputs,
                                     load.first_error.empty() ? "" : ": " + load.first_error)});
  }
  if (load.failed > load.short_outputs) {
    reasons.push_back({"failed_requests", fmt::format("{} of {} requests failed: {}", load.failed - load.short_outputs,
                                                      load.completed + load.failed, load.first_error)});
  }
}

void judge_window(const WindowFigures& window, const Limits& limits, std::vector<Reason>& reasons) {
  if (window.tokens_per_s <= 0) {
    reasons.push_back({"zero_output", "the servers counted no token in the window"});
  }
  if (window.failed_transfers > 0) {
    reasons.push_back({"failed_transfers", fmt::format("{} KV handovers failed", window.failed_transfers)});
  }
  if (window.retractions > 0) {
    reasons.push_back({"retractions", fmt::format("{} requests were retracted: the KV pool is too small for the batch",
                                                  window.retractions)});
  }
  if (window.pool_peak > limits.pool_peak) {
    reasons.push_back({"kv_pool_exhausted", fmt::format("a rank's KV pool was {} full (limit {})",
                                                        percent(window.pool_peak), percent(limits.pool_peak))});
  }
  if (window.variation > limits.variation) {
    reasons.push_back({"unsteady", fmt::format("the rate varied by {} over parts of the window (limit {})",
                                               percent(window.variation), percent(limits.variation))});
  }
  if (window.profiled) {
    reasons.push_back({"profiler_on", "steps in the window were being profiled"});
  }
  if (window.imbalance > limits.imbalance) {
    reasons.push_back({"rank_imbalance", fmt::format("the fullest rank had {} more than the mean (limit {})",
                                                     percent(window.imbalance), percent(limits.imbalance))});
  }
  if (window.disagreement() > limits.disagreement) {
    reasons.push_back(
        {"formulas_differ",
         fmt::format("{:.1f} tokens/s/GPU by counters, {:.1f} by running requests and step time: {} apart "
                     "(limit {})",
                     window.per_rank_by_counters, window.per_rank_by_steps, percent(window.disagreement()),
                     percent(limits.disagreement))});
  }
}

void judge_saturation(const Evidence& evidence, const Limits& limits, std::vector<Reason>& reasons) {
  if (evidence.target_running == 0 || evidence.window.running.empty()) return;
  const auto at = std::min_element(evidence.window.running.begin(), evidence.window.running.end());
  const double least = *at, wanted = limits.saturation * evidence.target_running;
  if (least >= wanted) return;
  const double starved = evidence.window.starved[size_t(at - evidence.window.running.begin())];
  if (starved >= limits.starved) {
    reasons.push_back({"kv_pool_exhausted", fmt::format("a rank ran {:.1f} requests while {:.1f} waited for blocks of "
                                                        "its KV pool",
                                                        least, starved)});
  }
  reasons.push_back({"not_saturated", fmt::format("a rank ran {:.1f} requests on average, wanted {:.1f} of {}", least,
                                                  wanted, evidence.target_running)});
}

void judge_trace(const Evidence& evidence, const Limits& limits, std::vector<Reason>& reasons) {
  if (!evidence.trace) return;
  if (evidence.trace->num_steps == 0) {
    reasons.push_back({"empty_trace", "the trace holds no step"});
    return;
  }
  if (evidence.window.step_ms <= 0) return;  // no step to compare with: zero_output says so
  const double apart = std::abs(evidence.trace->step_ms / evidence.window.step_ms - 1);
  if (apart <= limits.trace_disagreement) return;
  reasons.push_back(
      {"trace_differs", fmt::format("a step took {:.2f} ms in the trace, {:.2f} ms in the window: {} apart "
                                    "(limit {})",
                                    evidence.trace->step_ms, evidence.window.step_ms, percent(apart),
                                    percent(limits.trace_disagreement))});
}

}  // namespace

std::vector<Reason> judge(const Evidence& evidence, const Limits& limits) {
  std::vector<Reason> reasons;
  judge_outputs(evidence.load, reasons);
  judge_window(evidence.window, limits, reasons);
  judge_saturation(evidence, limits, reasons);
  judge_trace(evidence, limits, reasons);
  for (const std::string& fault : evidence.faults) reasons.push_back({"stage_failed", fault});
  return reasons;
}

}  // namespace tandem::workflow
