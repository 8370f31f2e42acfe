#include "text/pre_tokenizer_load.h"

#include <algorithm>
#include <array>
#include <utility>

#include "text/pattern_load.h"

namespace tandem::text {
namespace {

using Step = PreTokenizer::Step;
using Behavior = PreTokenizer::Behavior;

// GPT-2's pattern, which ByteLevel uses unless told otherwise (Radford et al. 2019, encoder.py).
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

Result<Behavior> parse_behavior(const JsonReader& json) {
  constexpr std::array<std::pair<std::string_view, Behavior>, 5> kNames = {{
      {"Isolated", Behavior::kIsolated},
      {"Removed", Behavior::kRemoved},
      {"Contiguous", Behavior::kContiguous},
      {"MergedWithPrevious", Behavior::kMergedWithPrevious},
      {"MergedWithNext", Behavior::kMergedWithNext},
  }};
  ASSIGN_OR_RETURN(std::string_view name, json.string("behavior"));
  auto found = std::find_if(kNames.begin(), kNames.end(), [&](const auto& row) { return row.first == name; });
  if (found == kNames.end()) return json.wrong("behavior", fmt::format("'{}' is not understood", name));
  return found->second;
}

Result<Step> parse_split(const JsonReader& json) {
  Step step;
  ASSIGN_OR_RETURN(step.behavior, parse_behavior(json));
  ASSIGN_OR_RETURN(step.invert, json.boolean("invert", false));
  ASSIGN_OR_RETURN(step.regex, parse_pattern(json));
  return step;
}

Result<Step> parse_digits(const JsonReader& json) {
  ASSIGN_OR_RETURN(bool individual, json.boolean("individual_digits", false));
  Step step;
  step.behavior = individual ? Behavior::kIsolated : Behavior::kContiguous;
  ASSIGN_OR_RETURN(step.regex, compile_pattern(json, R"(\p{N})"));
  return step;
}

Result<Step> parse_byte_level(const JsonReader& json) {
  Step step;
  ASSIGN_OR_RETURN(step.add_prefix_space, json.boolean("add_prefix_space", true));
  ASSIGN_OR_RETURN(bool use_regex, json.boolean("use_regex", true));
  if (use_regex) {
    ASSIGN_OR_RETURN(step.regex, compile_pattern(json, kGpt2Pattern));
  }
  // trim_offsets concerns positions in the text, which nothing here reports.
  return step;
}

// Appends what `json` says. ends: set by ByteLevel, behind which nothing may come.
Status parse_steps(const JsonReader& json, std::vector<Step>& steps, bool& ends) {
  if (ends) return json.wrong("", "stands behind ByteLevel, which must be the last step");
  ASSIGN_OR_RETURN(std::string_view type, json.string("type"));
  if (type == "Sequence") {
    ASSIGN_OR_RETURN(simdjson::dom::array list, json.array("pretokenizers"));
    size_t index = 0;
    for (simdjson::dom::element element : list) {
      ASSIGN_OR_RETURN(
          JsonReader entry,
          JsonReader::object(element, json.file(), fmt::format("{}[{}]", json.place("pretokenizers"), index++)));
      ASSIGN_OR_RETURN(std::string_view inner, entry.string("type"));
      if (inner == "Sequence") return entry.wrong("type", "'Sequence' within a Sequence is not understood");
      RETURN_IF_ERROR(parse_steps(entry, steps, ends));
    }
    return Ok{};
  }
  if (type != "Split" && type != "Digits" && type != "ByteLevel") {
    return json.wrong("type", fmt::format("'{}' is not understood (Split, Digits and ByteLevel are)", type));
  }
  ends = type == "ByteLevel";
  auto step = type == "Split" ? parse_split(json) : type == "Digits" ? parse_digits(json) : parse_byte_level(json);
  if (!step) return step.error();
  steps.push_back(std::move(step).value());
  return Ok{};
}

}  // namespace

Result<PreTokenizer> parse_pre_tokenizer(const JsonReader& root) {
  ASSIGN_OR_RETURN(JsonReader json, root.child("pre_tokenizer"));
  std::vector<Step> steps;
  bool ends = false;
  RETURN_IF_ERROR(parse_steps(json, steps, ends));
  if (!ends) return json.wrong("", "has no ByteLevel at its end: only byte-level BPE is understood");
  return PreTokenizer(std::move(steps));
}

}  // namespace tandem::text
