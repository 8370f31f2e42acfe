// The lines of --log-requests. Pure; any thread. They hold prompts and answers only because the operator asked for it.
//   level 0: who asked and how it ended   1: and how to sample   2: and the first 2,048 of prompt and answer   3: all
#pragma once

#include <cstddef>
#include <string>

#include "api/generate.h"
#include "server/core/sequence.h"

namespace tandem::server {

// Token ids of a prompt, and bytes of a text, that a level shows.
size_t logged_length(int32_t level);

// "Receive: obj=GenerateReqInput(rid="..", ..)", one line whatever the text holds. tokenizer: null gives ids only.
std::string received_line(int32_t level, const api::EngineRequest& request, bool stream,
                          const text::Tokenizer* tokenizer);
// "Finish: obj=GenerateReqInput(rid=".."), out={..}" of a sequence that has its last event. e2e_latency in seconds.
std::string finished_line(int32_t level, const Sequence& sequence, double e2e_latency);

}  // namespace tandem::server
