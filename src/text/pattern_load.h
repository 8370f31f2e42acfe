// The member "pattern" of a Split or a Replace in tokenizer.json. Private to the room.
#pragma once

#include <string_view>

#include "base/result.h"
#include "text/json_reader.h"
#include "text/regex.h"

namespace tandem::text {

// {"Regex": expression} or {"String": text to be found as it is}. json: the object that has the pattern.
Result<Regex> parse_pattern(const JsonReader& json);

// An expression of our own or of json; a fault names json's pattern.
Result<Regex> compile_pattern(const JsonReader& json, std::string_view expression);

}  // namespace tandem::text
