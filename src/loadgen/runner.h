// run_load: sends requests at their times over one event loop and measures each answer. The calling thread becomes the
// loop's thread until every request has ended; thousands of requests are under way at once.
#pragma once

#include <functional>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "loadgen/measure.h"
#include "net/http_client.h"

namespace tandem::loadgen {

struct LoadPlan {
  net::Url url;  // where requests are posted
  net::Headers headers;
  std::vector<Duration> arrivals;          // one a request, ascending, from the start
  std::optional<int32_t> max_concurrency;  // requests under way at once; others wait their turn, unmeasured
  Duration request_timeout = std::chrono::hours(6);
  // Requested: no further request is dispatched; those under way end as they would. May never be.
  std::stop_token stop_dispatch;
  // The body of request `index` and what its answer must be. Called when the request is dispatched, so that bodies do
  // not exist before and after they are needed.
  std::function<std::string(size_t index)> body;
  std::function<Expectation(size_t index)> expectation;
  // Called about ten times a second and after each end; may be empty.
  std::function<void(size_t done, size_t failed, TimePoint now)> progress;
};

struct LoadOutcome {
  TimePoint start;                     // first dispatch
  std::vector<RequestResult> results;  // of those dispatched, by index; input_len is left to the caller
};

// Every request ends: by its answer, its error, or its timeout. kCancelled when stop is requested: all are hung up.
Result<LoadOutcome> run_load(const LoadPlan& plan, const Clock& clock, std::stop_token stop);

}  // namespace tandem::loadgen
