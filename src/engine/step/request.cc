#include "engine/step/request.h"

#include <algorithm>

#include "engine/roles/decode_worker.h"
#include "engine/roles/prefill_worker.h"

namespace tandem::engine {

Request::Request() = default;
Request::~Request() = default;

int32_t Request::first_logprob_position() const {
  if (!input.return_logprob || input.logprob_start_len < 0) return prompt_tokens;
  return std::min(input.logprob_start_len, prompt_tokens);
}

Ending finished_by_length(int32_t length) {
  Ending ending;
  ending.finish.kind = api::FinishKind::kLength;
  ending.finish.length = length;
  return ending;
}

Ending aborted(std::string message, int32_t status_code) {
  Ending ending;
  ending.finish.kind = api::FinishKind::kAbort;
  ending.finish.message = std::move(message);
  ending.finish.status_code = status_code;
  ending.state = scheduler::RequestState::kAborted;
  return ending;
}

Ending failed(std::string message, int32_t status_code) {
  Ending ending = aborted(std::move(message), status_code);
  ending.state = scheduler::RequestState::kFailed;
  return ending;
}

}  // namespace tandem::engine
