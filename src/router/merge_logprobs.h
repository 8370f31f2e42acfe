// A disaggregated request's log-probabilities of the prompt come from prefill, those of the answer from decode: the
// prefill's input_token_logprobs (and input_top_logprobs, input_token_ids_logprobs) go in front of the decode's. Texts
// are spliced, so numbers keep every digit. Pure.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace tandem::router {

// Two whole /generate answers, objects or arrays of as many objects. Errors: one of them is not what it should be.
Result<std::string> merge_input_logprobs(std::string_view prefill, std::string_view decode);

// The same event by event: all events of the prefill's stream first, then each event of decode's.
class EventLogprobMerger {
 public:
  void add_prefill_event(std::string_view data);
  // The event with the prompt's part in front; events without any are returned as they are.
  std::string merge(std::string_view data) const;

 private:
  std::map<int64_t, std::string> prefill_events_;  // by "index", 0 when there is none; the first of each
};

}  // namespace tandem::router
