#include "api/parse/sampling.h"

#include <fmt/format.h>

#include <cctype>
#include <charconv>
#include <limits>

#include "api/parse/values.h"

namespace tandem::api {
namespace {

using Reader = Status (*)(Element value, std::string_view path, SamplingParams& out);

template <auto Member>
Status read_double(Element value, std::string_view path, SamplingParams& out) {
  ASSIGN_OR_RETURN(out.*Member, to_double(value, path));
  return Ok{};
}

template <auto Member>
Status read_int(Element value, std::string_view path, SamplingParams& out) {
  ASSIGN_OR_RETURN(out.*Member, to_int32(value, path));
  return Ok{};
}

template <auto Member>
Status read_bool(Element value, std::string_view path, SamplingParams& out) {
  ASSIGN_OR_RETURN(out.*Member, to_bool(value, path));
  return Ok{};
}

template <auto Member>
Status read_strings(Element value, std::string_view path, SamplingParams& out) {
  ASSIGN_OR_RETURN(out.*Member, to_strings(value, path));
  return Ok{};
}

Status read_max_new_tokens(Element value, std::string_view path, SamplingParams& out) {
  ASSIGN_OR_RETURN(out.max_new_tokens, to_int32(value, path));
  out.max_new_tokens_given = true;
  return Ok{};
}

Status read_stop_ids(Element value, std::string_view path, SamplingParams& out) {
  ASSIGN_OR_RETURN(out.stop_token_ids, to_ids(value, path));
  return Ok{};
}

Status read_seed(Element value, std::string_view path, SamplingParams& out) {
  ASSIGN_OR_RETURN(int64_t seed,
                   to_int(value, path, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()));
  out.seed = static_cast<uint64_t>(seed);
  return Ok{};
}

Status read_logit_bias(Element value, std::string_view path, SamplingParams& out) {
  if (!value.is_object()) return corrupt(fmt::format("{}: wanted an object, got {}", path, kind_name(value)));
  out.logit_bias.clear();
  for (auto [key, bias] : simdjson::dom::object(value)) {
    int32_t id = -1;
    auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0) {
      return corrupt(fmt::format("{}: wanted token ids as keys, got \"{}\"", path, shown(key)));
    }
    ASSIGN_OR_RETURN(double number, to_double(bias, path));
    out.logit_bias.emplace_back(id, static_cast<float>(number));
  }
  return Ok{};
}

Status read_interval(Element value, std::string_view path, SamplingParams& out) {
  ASSIGN_OR_RETURN(out.stream_interval, to_int32(value, path));
  return Ok{};
}

struct Field {
  std::string_view native, openai;  // empty: not a key of that dialect
  Reader read;
};

using P = SamplingParams;
constexpr Field kFields[] = {
    {"max_new_tokens", "", read_max_new_tokens},
    {"", "max_tokens", read_max_new_tokens},
    {"", "max_completion_tokens", read_max_new_tokens},
    {"min_new_tokens", "min_tokens", read_int<&P::min_new_tokens>},
    {"temperature", "temperature", read_double<&P::temperature>},
    {"top_p", "top_p", read_double<&P::top_p>},
    {"min_p", "min_p", read_double<&P::min_p>},
    {"top_k", "top_k", read_int<&P::top_k>},
    {"frequency_penalty", "frequency_penalty", read_double<&P::frequency_penalty>},
    {"presence_penalty", "presence_penalty", read_double<&P::presence_penalty>},
    {"repetition_penalty", "repetition_penalty", read_double<&P::repetition_penalty>},
    {"stop", "stop", read_strings<&P::stop>},
    {"stop_token_ids", "stop_token_ids", read_stop_ids},
    {"stop_regex", "stop_regex", read_strings<&P::stop_regex>},
    {"ignore_eos", "ignore_eos", read_bool<&P::ignore_eos>},
    {"skip_special_tokens", "skip_special_tokens", read_bool<&P::skip_special_tokens>},
    {"no_stop_trim", "no_stop_trim", read_bool<&P::no_stop_trim>},
    {"n", "n", read_int<&P::n>},
    {"stream_interval", "", read_interval},
    {"logit_bias", "logit_bias", read_logit_bias},
    {"sampling_seed", "seed", read_seed},
};

constexpr UnsupportedField kUnsupportedSampling[] = {
    {"json_schema", Accepts::kNull},
    {"regex", Accepts::kNull},
    {"ebnf", Accepts::kNull},
    {"structural_tag", Accepts::kNull},
    {"custom_params", Accepts::kNullOrEmpty},
    {"spaces_between_special_tokens", Accepts::kTrue},
};

Error out_of_range(std::string_view key, std::string_view wanted, auto came) {
  return invalid_input(fmt::format("{} must be {}, got {}.", key, wanted, came));
}

bool is_default(Accepts accepts, Element value) {
  bool flag;
  if (value.is_null()) return true;
  switch (accepts) {
    case Accepts::kNull: return false;
    case Accepts::kFalse: return !value.get_bool().get(flag) && !flag;
    case Accepts::kTrue: return !value.get_bool().get(flag) && flag;
    case Accepts::kNullOrEmpty: {
      std::string_view text;
      if (value.is_array()) return simdjson::dom::array(value).size() == 0;
      if (value.is_object()) return simdjson::dom::object(value).size() == 0;
      return !value.get_string().get(text) && text.empty();
    }
  }
  return false;
}

}  // namespace

bool take_unsupported(std::span<const UnsupportedField> table, std::string_view name, Element value, Call& call) {
  for (const UnsupportedField& field : table) {
    if (field.name != name) continue;
    if (!is_default(field.accepts, value)) {
      call.refuse(fmt::format("{} is not supported by this server; only its default is accepted.", name));
    }
    return true;
  }
  return false;
}

Result<SamplingParams> parse_native_sampling(Element object, std::string_view path, Call& call) {
  SamplingParams params;
  if (object.is_null()) return params;
  if (!object.is_object()) return corrupt(fmt::format("{}: wanted an object, got {}", path, kind_name(object)));
  for (auto [key, value] : simdjson::dom::object(object)) {
    const Field* found = nullptr;
    for (const Field& field : kFields) {
      if (field.native == key && !key.empty()) found = &field;
    }
    if (!found) {
      if (take_unsupported(kUnsupportedSampling, key, value, call)) continue;
      call.refuse(fmt::format("Unknown sampling parameter '{}'.", shown(key)));
      continue;
    }
    if (value.is_null()) {
      // As in SGLang: no limit of its own; the context length ends it.
      if (key == "max_new_tokens") params.max_new_tokens = std::numeric_limits<int32_t>::max();
      continue;
    }
    RETURN_IF_ERROR(found->read(value, fmt::format("{}.{}", path, key), params));
  }
  Status ranges = check_sampling(params);
  if (!ranges) call.refuse(ranges.error().message);
  return params;
}

Result<bool> parse_openai_sampling(const std::string& key, Element value, SamplingParams& out) {
  for (const Field& field : kFields) {
    if (field.openai != key || key.empty()) continue;
    if (!value.is_null()) RETURN_IF_ERROR(field.read(value, key, out));
    return true;
  }
  return false;
}

Status check_sampling(const SamplingParams& p) {
  // Written so that a NaN fails too.
  if (p.max_new_tokens < 0) return out_of_range("max_new_tokens", "at least 0", p.max_new_tokens);
  if (p.min_new_tokens < 0 || p.min_new_tokens > p.max_new_tokens) {
    return out_of_range("min_new_tokens", fmt::format("in [0, max_new_tokens({})]", p.max_new_tokens),
                        p.min_new_tokens);
  }
  if (!(p.temperature >= 0)) return out_of_range("temperature", "non-negative", p.temperature);
  if (!(p.top_p > 0 && p.top_p <= 1)) return out_of_range("top_p", "in (0, 1]", p.top_p);
  if (!(p.min_p >= 0 && p.min_p <= 1)) return out_of_range("min_p", "in [0, 1]", p.min_p);
  if (p.top_k != -1 && p.top_k < 1) return out_of_range("top_k", "-1 (disable) or at least 1", p.top_k);
  auto penalty = [](double value) { return value >= -2 && value <= 2; };
  if (!penalty(p.frequency_penalty)) return out_of_range("frequency_penalty", "in [-2, 2]", p.frequency_penalty);
  if (!penalty(p.presence_penalty)) return out_of_range("presence_penalty", "in [-2, 2]", p.presence_penalty);
  if (!(p.repetition_penalty >= 0 && p.repetition_penalty <= 2)) {
    return out_of_range("repetition_penalty", "in [0, 2]", p.repetition_penalty);
  }
  if (p.n < 1 || p.n > kMaxSequencesPerCall) {
    return out_of_range("n", fmt::format("in [1, {}]", kMaxSequencesPerCall), p.n);
  }
  if (p.stream_interval && *p.stream_interval < 1) {
    return out_of_range("stream_interval", "at least 1", *p.stream_interval);
  }
  for (const std::string& stop : p.stop) {
    if (stop.empty()) return invalid_input("stop must not contain an empty string.");
  }
  return Ok{};
}

}  // namespace tandem::api
