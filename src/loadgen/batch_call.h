// One streaming POST /generate for a whole batch: sent, followed to its end, timed.
#pragma once

#include <cstdint>
#include <stop_token>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "net/http_client.h"
#include "net/sse.h"

#include <simdjson.h>

namespace tandem::loadgen {

struct BatchTimes {
  double latency_s = 0;    // to the last event
  double last_ttft_s = 0;  // of the last event with one completion token
};

// Judges the batch's events; no socket, no clock. Fail-closed: an error event, a finish other than `length`, a sequence
// without its own first-token event or without an end is an error.
class BatchMeter {
 public:
  BatchMeter(int32_t batch_size, TimePoint start)
      : start_(start), finished_(size_t(batch_size)), begun_(size_t(batch_size)) {}
  Status on_event(std::string_view data, TimePoint now);
  Result<BatchTimes> finish() const;

 private:
  TimePoint start_;
  std::vector<bool> finished_, begun_;  // by sequence
  BatchTimes times_;
  simdjson::dom::parser parser_;
};

struct BatchRequest {
  net::Url url;
  net::Headers headers;
  std::string body;
  int32_t batch_size = 1;
  Duration timeout = std::chrono::hours(6);
};

// Blocks; the calling thread becomes an event loop's.
Result<BatchTimes> run_batch(BatchRequest request, const Clock& clock, std::stop_token stop);

}  // namespace tandem::loadgen
