// prepare(): from a body to sequences' worth of token ids: parse, chat template, tokenize, length and vocabulary
// checks. A function of its arguments; any thread.
#pragma once

#include <optional>
#include <string>

#include "api/call.h"
#include "server/server.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace tandem::server {

struct PrepareParts {
  const ServerConfig* config = nullptr;
  const text::Tokenizer* tokenizer = nullptr;         // null: ids only
  const text::ChatTemplate* chat_template = nullptr;  // null: no chat
  size_t longest_token_bytes = 0;                     // of the tokenizer; 0: not known
};

struct Prepared {
  api::Call call;              // every item has input_ids unless call.refusal is set
  std::optional<Error> error;  // the body itself is broken: call means nothing
};

Prepared prepare(const PrepareParts& parts, api::Dialect dialect, std::string body);

}  // namespace tandem::server
