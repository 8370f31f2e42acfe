#include "router/merge_logprobs.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>

#include "base/json.h"

namespace tandem::router {

namespace {

constexpr std::array<std::string_view, 3> kKeys = {"input_token_logprobs", "input_top_logprobs",
                                                   "input_token_ids_logprobs"};

// Where one value stands in the text, by key.
struct Place {
  size_t offset = 0, size = 0;
};
using Places = std::array<std::optional<Place>, kKeys.size()>;

struct Answer {
  Places places;
  int64_t index = 0;
};

Result<Answer> read_answer(simdjson::ondemand::object object, const char* start) {
  Answer answer;
  for (auto field : object) {
    std::string_view key;
    if (field.unescaped_key().get(key)) return corrupt("not valid JSON");
    simdjson::ondemand::value value;
    if (std::move(field).value().get(value)) return corrupt("not valid JSON");
    if (key == "index") {
      if (value.get_int64().get(answer.index)) return corrupt("'index' is not a number");
    }
    if (key != "meta_info") continue;
    simdjson::ondemand::object meta;
    if (value.get_object().get(meta)) return corrupt("'meta_info' is not an object");
    for (auto member : meta) {
      std::string_view name;
      if (member.unescaped_key().get(name)) return corrupt("not valid JSON");
      const size_t which = std::find(kKeys.begin(), kKeys.end(), name) - kKeys.begin();
      if (which == kKeys.size()) continue;
      simdjson::ondemand::value list;
      if (std::move(member).value().get(list)) return corrupt("not valid JSON");
      simdjson::ondemand::json_type type;
      if (list.type().get(type)) return corrupt("not valid JSON");
      std::string_view raw;
      if (type == simdjson::ondemand::json_type::array) {
        simdjson::ondemand::array array;
        if (list.get_array().get(array) || array.raw_json().get(raw)) return corrupt("not valid JSON");
      } else {
        raw = list.raw_json_token();
        while (!raw.empty() && raw.back() == ' ') raw.remove_suffix(1);
      }
      answer.places[which] = Place{static_cast<size_t>(raw.data() - start), raw.size()};
    }
  }
  return answer;
}

Result<std::vector<Answer>> read_answers(const simdjson::padded_string& text) {
  simdjson::ondemand::parser parser;
  simdjson::ondemand::document document;
  std::vector<Answer> answers;
  if (parser.iterate(text).get(document)) return corrupt("not valid JSON");
  simdjson::ondemand::json_type type;
  if (document.type().get(type)) return corrupt("not valid JSON");
  if (type == simdjson::ondemand::json_type::object) {
    simdjson::ondemand::object object;
    if (document.get_object().get(object)) return corrupt("not valid JSON");
    ASSIGN_OR_RETURN(auto answer, read_answer(object, text.data()));
    answers.push_back(answer);
    return answers;
  }
  simdjson::ondemand::array array;
  if (document.get_array().get(array)) return corrupt("neither an object nor an array");
  for (auto element : array) {
    simdjson::ondemand::object object;
    if (element.get_object().get(object)) return corrupt("an element is not an object");
    ASSIGN_OR_RETURN(auto answer, read_answer(object, text.data()));
    answers.push_back(answer);
  }
  return answers;
}

// "[a" + "b]" of two arrays' texts; anything that is not an array counts as empty.
std::string joined(std::string_view prefill, std::string_view decode) {
  if (!prefill.starts_with('[')) return std::string(decode);
  if (!decode.starts_with('[')) return std::string(prefill);
  auto inside = [](std::string_view list) {
    list = list.substr(1, list.size() - 2);
    const size_t first = list.find_first_not_of(" \t\r\n");
    if (first == std::string_view::npos) return std::string_view();
    return list.substr(first, list.find_last_not_of(" \t\r\n") - first + 1);
  };
  const std::string_view a = inside(prefill), b = inside(decode);
  return fmt::format("[{}{}{}]", a, a.empty() || b.empty() ? "" : ", ", b);
}

}  // namespace

Result<std::string> merge_input_logprobs(std::string_view prefill, std::string_view decode) {
  const simdjson::padded_string prefill_text(prefill), decode_text(decode);
  auto from = read_answers(prefill_text);
  if (!from) return corrupt(fmt::format("the prefill server's answer: {}", from.error().message));
  auto into = read_answers(decode_text);
  if (!into) return corrupt(fmt::format("the decode server's answer: {}", into.error().message));
  if (from->size() != into->size()) {
    return corrupt(fmt::format("{} answers from prefill, {} from decode", from->size(), into->size()));
  }
  struct Edit {
    Place place;
    std::string text;
  };
  std::vector<Edit> edits;
  for (size_t i = 0; i < into->size(); ++i) {
    for (size_t key = 0; key < kKeys.size(); ++key) {
      const auto& source = (*from)[i].places[key];
      const auto& target = (*into)[i].places[key];
      if (!source || !target) continue;
      edits.push_back(
          {*target, joined(prefill.substr(source->offset, source->size), decode.substr(target->offset, target->size))});
    }
  }
  std::sort(edits.begin(), edits.end(), [](const Edit& a, const Edit& b) { return a.place.offset < b.place.offset; });
  std::string merged;
  size_t at = 0;
  for (const Edit& edit : edits) {
    merged.append(decode.substr(at, edit.place.offset - at)).append(edit.text);
    at = edit.place.offset + edit.place.size;
  }
  return merged.append(decode.substr(at));
}

void EventLogprobMerger::add_prefill_event(std::string_view data) {
  const simdjson::padded_string text(data);
  auto answers = read_answers(text);
  if (!answers || answers->size() != 1) return;
  const Answer& answer = answers->front();
  if (std::any_of(answer.places.begin(), answer.places.end(), [](const auto& place) { return place.has_value(); })) {
    prefill_events_.emplace(answer.index, data);
  }
}

std::string EventLogprobMerger::merge(std::string_view data) const {
  const simdjson::padded_string text(data);
  auto answers = read_answers(text);
  if (!answers || answers->size() != 1) return std::string(data);
  auto prefill = prefill_events_.find(answers->front().index);
  if (prefill == prefill_events_.end()) return std::string(data);
  auto merged = merge_input_logprobs(prefill->second, data);
  return merged ? std::move(merged).value() : std::string(data);
}

}  // namespace tandem::router
