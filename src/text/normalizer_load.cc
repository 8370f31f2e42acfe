#include "text/normalizer_load.h"

#include <algorithm>
#include <array>
#include <utility>

#include "text/pattern_load.h"

namespace tandem::text {
namespace {

using Step = Normalizer::Step;

// No tokenizer comes near; a chain of replacements by longer texts would grow exponentially.
constexpr double kMaxGrowth = 1000;

constexpr std::array<std::pair<std::string_view, NormalForm>, 4> kForms = {{
    {"NFC", NormalForm::kNfc},
    {"NFD", NormalForm::kNfd},
    {"NFKC", NormalForm::kNfkc},
    {"NFKD", NormalForm::kNfkd},
}};

// How many times longer, in bytes, a step can make a text, and never less than once.
double growth(NormalForm form) {
  // U+0390 and U+FDFA are the worst (UAX 15, "Maximum Expansion Factors").
  return form == NormalForm::kNfc || form == NormalForm::kNfd ? 3 : 11;
}
double growth(const Normalizer::Lowercase&) { return 1.5; }
double growth(const Normalizer::Replace& step) {
  auto content = static_cast<double>(step.content.size());
  size_t shortest = step.pattern.min_length();
  return shortest == 0 ? 1 + 2 * content : std::max(1.0, content / static_cast<double>(shortest));
}
double growth(const Normalizer::Strip&) { return 1; }
double growth(const Normalizer::Prepend& step) { return 1 + static_cast<double>(step.content.size()); }

Result<Step> parse_replace(const JsonReader& json) {
  Normalizer::Replace step;
  ASSIGN_OR_RETURN(step.pattern, parse_pattern(json));
  ASSIGN_OR_RETURN(step.content, json.string("content"));
  return Step(std::move(step));
}

Result<Step> parse_strip(const JsonReader& json) {
  Normalizer::Strip step;
  ASSIGN_OR_RETURN(step.left, json.boolean("strip_left", true));
  ASSIGN_OR_RETURN(step.right, json.boolean("strip_right", true));
  return Step(step);
}

Result<Step> parse_step(const JsonReader& json, std::string_view type) {
  auto form = std::find_if(kForms.begin(), kForms.end(), [&](const auto& row) { return row.first == type; });
  if (form != kForms.end()) return Step(form->second);
  if (type == "Lowercase") return Step(Normalizer::Lowercase{});
  if (type == "Replace") return parse_replace(json);
  if (type == "Strip") return parse_strip(json);
  if (type == "Prepend") {
    ASSIGN_OR_RETURN(std::string_view content, json.string("prepend"));
    return Step(Normalizer::Prepend{std::string(content)});
  }
  return json.wrong("type", fmt::format("'{}' is not understood (NFC, NFD, NFKC, NFKD, Lowercase, Replace, Strip, "
                                        "Prepend and Sequence are)",
                                        type));
}

// Appends what `json` says; a Sequence within a Sequence is its steps (the JSON parser bounds the depth).
Status parse_steps(const JsonReader& json, std::vector<Step>& steps) {
  ASSIGN_OR_RETURN(std::string_view type, json.string("type"));
  if (type != "Sequence") {
    ASSIGN_OR_RETURN(Step step, parse_step(json, type));
    steps.push_back(std::move(step));
    return Ok{};
  }
  ASSIGN_OR_RETURN(simdjson::dom::array list, json.array("normalizers"));
  size_t index = 0;
  for (simdjson::dom::element element : list) {
    std::string place = fmt::format("{}[{}]", json.place("normalizers"), index++);
    ASSIGN_OR_RETURN(JsonReader entry, JsonReader::object(element, json.file(), std::move(place)));
    RETURN_IF_ERROR(parse_steps(entry, steps));
  }
  return Ok{};
}

}  // namespace

Result<Normalizer> parse_normalizer(const JsonReader& root) {
  std::vector<Step> steps;
  if (!root.find("normalizer")) return Normalizer();
  ASSIGN_OR_RETURN(JsonReader json, root.child("normalizer"));
  RETURN_IF_ERROR(parse_steps(json, steps));
  double factor = 1;
  for (const Step& step : steps) factor *= std::visit([](const auto& kind) { return growth(kind); }, step);
  if (factor > kMaxGrowth) {
    return json.wrong("", fmt::format("could make a text {} times longer: at most {} is taken", factor, kMaxGrowth));
  }
  return Normalizer(std::move(steps));
}

}  // namespace tandem::text
