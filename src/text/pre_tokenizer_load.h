// tokenizer.json's pre_tokenizer as a PreTokenizer. Private to the room.
#pragma once

#include "base/result.h"
#include "text/json_reader.h"
#include "text/pre_tokenizer.h"

namespace tandem::text {

// root: the whole of tokenizer.json. A type or option that is not understood is an error that names it.
Result<PreTokenizer> parse_pre_tokenizer(const JsonReader& root);

}  // namespace tandem::text
