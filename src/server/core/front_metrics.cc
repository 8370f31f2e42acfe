#include "server/core/front_metrics.h"

namespace tandem::server {
namespace {

const std::vector<double> kFirstTokenSeconds = {0.1, 0.2, 0.4, 0.6, 0.8, 1,  2,   4,   6,
                                                8,   10,  20,  40,  60,  80, 100, 200, 400};
const std::vector<double> kBetweenTokensSeconds = {0.002, 0.004, 0.006, 0.008, 0.010, 0.015, 0.020, 0.025,
                                                   0.030, 0.035, 0.040, 0.060, 0.080, 0.100, 0.200, 0.400,
                                                   0.600, 0.800, 1,     2,     4,     6,     8};
const std::vector<double> kRequestSeconds = {0.1, 0.2, 0.4, 0.6, 0.8, 1,   2,   4,   6,    8,    10,
                                             20,  40,  60,  80,  100, 200, 400, 600, 1200, 1800, 2400};
const std::vector<double> kRetractions = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 25, 30, 40, 50, 75, 100};

}  // namespace

FrontMetrics::FrontMetrics(profile::Metrics& metrics, const std::string& model_name) {
  profile::Labels labels = {{"model_name", model_name}};
  prompt_tokens = metrics.counter("sglang:prompt_tokens_total", "Number of prefill tokens processed.", labels);
  generation_tokens =
      metrics.counter("sglang:generation_tokens_total", "Number of generation tokens processed.", labels);
  cached_tokens = metrics.counter("sglang:cached_tokens_total", "Number of cached prompt tokens.", labels);
  requests = metrics.counter("sglang:num_requests_total", "Number of requests processed.", labels);
  aborted = metrics.counter("sglang:num_aborted_requests_total", "Number of requests aborted.", labels);
  time_to_first_token = metrics.histogram("sglang:time_to_first_token_seconds",
                                          "Histogram of time to first token in seconds.", labels, kFirstTokenSeconds);
  inter_token_latency =
      metrics.histogram("sglang:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", labels,
                        kBetweenTokensSeconds);
  e2e_latency = metrics.histogram("sglang:e2e_request_latency_seconds",
                                  "Histogram of end-to-end request latency in seconds.", labels, kRequestSeconds);
  retractions =
      metrics.histogram("sglang:num_retractions", "Histogram of retraction counts per request.", labels, kRetractions);
}

}  // namespace tandem::server
