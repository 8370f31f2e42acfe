// tokenizer.json's normalizer as a Normalizer. Private to the room.
#pragma once

#include "base/result.h"
#include "text/json_reader.h"
#include "text/normalizer.h"

namespace tandem::text {

// root: the whole of tokenizer.json. None, null and an empty Sequence leave the text as it is. A type or option that is
// not understood is an error that names it; so is a normalizer that could make the text a thousand times longer.
Result<Normalizer> parse_normalizer(const JsonReader& root);

}  // namespace tandem::text
