// Sampling parameters of all dialects: one table of keys, one check of ranges. Pure.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "api/call.h"
#include "api/parse/cursor.h"

namespace tandem::api {

// The object `sampling_params` of /generate. Wrong types are kCorrupt; unknown or unsupported keys and values out of
// range are put into call.refusal.
Result<SamplingParams> parse_native_sampling(Element object, std::string_view path, Call& call);

// A sampling key of the OpenAI dialects, which lie beside the other fields. False: not one of them.
Result<bool> parse_openai_sampling(const std::string& key, Element value, SamplingParams& out);

// Ranges of serving.md 1.3; kInvalidInput names key and value.
Status check_sampling(const SamplingParams& params);

// A parameter that this server knows and does not offer: fine while it has its default.
enum class Accepts : uint8_t { kNull, kNullOrEmpty, kFalse, kTrue };
struct UnsupportedField {
  std::string_view name;
  Accepts accepts;
};
// True: name is in the table; a value other than the default is put into call.refusal.
bool take_unsupported(std::span<const UnsupportedField> table, std::string_view name, Element value, Call& call);

}  // namespace tandem::api
