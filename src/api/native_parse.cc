#include <fmt/format.h>

#include "api/native.h"
#include "api/parse/bootstrap.h"
#include "api/parse/sampling.h"
#include "api/parse/values.h"

namespace tandem::api {
namespace {

constexpr UnsupportedField kUnsupported[] = {
    {"input_embeds", Accepts::kNullOrEmpty},
    {"image_data", Accepts::kNullOrEmpty},
    {"audio_data", Accepts::kNullOrEmpty},
    {"video_data", Accepts::kNullOrEmpty},
    {"lora_path", Accepts::kNullOrEmpty},
    {"session_params", Accepts::kNullOrEmpty},
    {"custom_logit_processor", Accepts::kNullOrEmpty},
    {"return_hidden_states", Accepts::kFalse},
    {"return_entropy", Accepts::kFalse},
    {"background", Accepts::kFalse},
    {"extra_key", Accepts::kNullOrEmpty},
};

// The body as sent, before its lists are spread over the prompts.
struct Fields {
  OneOrMany<std::string> text;
  OneOrMany<std::vector<int32_t>> ids;
  OneOrMany<std::string> rid;
  OneOrMany<SamplingParams> sampling;
  OneOrMany<bool> return_logprob;
  OneOrMany<int32_t> logprob_start_len, top_logprobs_num;
  OneOrMany<std::vector<int32_t>> token_ids_logprob;
  BootstrapFields bootstrap;
};

Status read_text(Cursor& at, OneOrMany<std::string>& out) {
  out = {};
  if (at.peek() == '[') {
    out.is_list = true;
    return at.array("text", [&](size_t) -> Status {
      ASSIGN_OR_RETURN(std::string text, at.string("text"));
      out.values.push_back(std::move(text));
      return Ok{};
    });
  }
  if (at.peek() == '"') {
    ASSIGN_OR_RETURN(std::string text, at.string("text"));
    out.values.push_back(std::move(text));
    return Ok{};
  }
  ASSIGN_OR_RETURN(Element other, at.value("text"));
  if (other.is_null()) return Ok{};
  return corrupt(fmt::format("text: wanted a string or an array of strings, got {}", kind_name(other)));
}

Status read_input_ids(Cursor& at, OneOrMany<std::vector<int32_t>>& out) {
  out = {};
  if (at.peek() != '[') {
    ASSIGN_OR_RETURN(Element other, at.value("input_ids"));
    if (other.is_null()) return Ok{};
    return corrupt(fmt::format("input_ids: wanted an array of token ids, got {}", kind_name(other)));
  }
  if (at.peek_inside() != '[') {
    ASSIGN_OR_RETURN(std::vector<int32_t> ids, at.ids("input_ids"));
    out.values.push_back(std::move(ids));
    return Ok{};
  }
  out.is_list = true;
  return at.array("input_ids", [&](size_t) -> Status {
    ASSIGN_OR_RETURN(std::vector<int32_t> ids, at.ids("input_ids"));
    out.values.push_back(std::move(ids));
    return Ok{};
  });
}

// A flat list of ids for all prompts, or a list with one (or null) for each.
Status read_token_ids_logprob(Element value, OneOrMany<std::vector<int32_t>>& out) {
  out = {};
  if (value.is_null()) return Ok{};
  bool nested = false;
  if (value.is_array()) {
    for (Element item : simdjson::dom::array(value)) nested = nested || item.is_array() || item.is_null();
  }
  if (!nested) {
    ASSIGN_OR_RETURN(std::vector<int32_t> ids, to_ids(value, "token_ids_logprob"));
    out.values.push_back(std::move(ids));
    return Ok{};
  }
  auto read = [](Element item, std::string_view path) -> Result<std::vector<int32_t>> {
    if (item.is_null()) return std::vector<int32_t>();
    return to_ids(item, path);
  };
  return read_one_or_many(value, "token_ids_logprob", out, read);
}

Status read_sampling(Element value, Fields& fields, Call& call) {
  auto read = [&](Element item, std::string_view path) { return parse_native_sampling(item, path, call); };
  return read_one_or_many(value, "sampling_params", fields.sampling, read);
}

// Fields with the same meaning whatever the batch. False: not one of them.
Result<bool> read_call_field(const std::string& key, Element value, Call& call) {
  bool* flag = key == "stream"                    ? &call.stream
               : key == "return_text_in_logprobs" ? &call.return_text_in_logprobs
               : key == "log_metrics"             ? &call.log_metrics
                                                  : nullptr;
  if (flag) {
    if (value.is_null()) return true;
    ASSIGN_OR_RETURN(*flag, to_bool(value, key));
    return true;
  }
  if (key != "priority" && key != "data_parallel_rank") return false;
  if (value.is_null()) return true;
  ASSIGN_OR_RETURN(int32_t number, to_int32(value, key));
  if (key == "priority") {
    call.priority = number;
  } else {
    call.data_parallel_rank = number;
  }
  return true;
}

Status read_field(const std::string& key, Cursor& at, Fields& fields, Call& call) {
  if (key == "text") return read_text(at, fields.text);
  if (key == "input_ids") return read_input_ids(at, fields.ids);
  ASSIGN_OR_RETURN(Element value, at.value(key));
  if (key == "sampling_params") return read_sampling(value, fields, call);
  if (key == "rid") return read_one_or_many(value, key, fields.rid, to_string);
  if (key == "return_logprob") return read_one_or_many(value, key, fields.return_logprob, to_bool);
  if (key == "logprob_start_len") return read_one_or_many(value, key, fields.logprob_start_len, to_int32);
  if (key == "top_logprobs_num") return read_one_or_many(value, key, fields.top_logprobs_num, to_int32);
  if (key == "token_ids_logprob") return read_token_ids_logprob(value, fields.token_ids_logprob);
  ASSIGN_OR_RETURN(bool is_bootstrap, fields.bootstrap.read(key, value));
  if (is_bootstrap) return Ok{};
  ASSIGN_OR_RETURN(bool is_call, read_call_field(key, value, call));
  if (!is_call) take_unsupported(kUnsupported, key, value, call);
  return Ok{};
}

// The prompts; text decides single or batch, the ids give the tokens where both are there.
void spread_prompts(Fields& fields, Call& call) {
  if (!fields.text.given() && !fields.ids.given()) {
    return call.refuse("Either text, input_ids or input_embeds should be provided.");
  }
  call.is_batch = fields.text.given() ? fields.text.is_list : fields.ids.is_list;
  size_t prompts = fields.text.given() ? fields.text.values.size() : fields.ids.values.size();
  if (fields.ids.given() && (fields.ids.values.size() != prompts || fields.ids.is_list != call.is_batch)) {
    return call.refuse("text and input_ids must have the same batch size.");
  }
  if (prompts == 0) return call.refuse("The batch is empty.");
  call.items.resize(prompts);
  for (size_t i = 0; i < prompts; ++i) {
    PromptItem& item = call.items[i];
    item.has_ids = fields.ids.given();
    if (!item.has_ids) {
      item.text = std::move(fields.text.values[i]);
      continue;
    }
    item.input_ids = std::move(fields.ids.values[i]);
    if (item.input_ids.empty()) return call.refuse("input_ids cannot be empty.");
  }
}

void spread_sampling(Fields& fields, Call& call) {
  if (!fits(fields.sampling, call.items.size())) {
    return call.refuse("The length of sampling_params should be equal to the batch size.");
  }
  for (SamplingParams& params : fields.sampling.values) call.sampling.emplace_back(std::move(params));
  if (call.sampling.empty()) call.sampling.emplace_back();
  call.n = call.sampling[0]->n;
  for (const SharedSampling& params : call.sampling) {
    if (params->n != call.n) return call.refuse("n must be the same for all prompts of a batch.");
  }
  if (static_cast<int64_t>(call.items.size()) * call.n > kMaxSequencesPerCall) {
    call.refuse(fmt::format("{} prompts with n = {} are more than the limit of {} sequences in one request.",
                            call.items.size(), call.n, kMaxSequencesPerCall));
  }
}

void spread_lists(const Fields& fields, Call& call) {
  size_t prompts = call.items.size();
  auto check = [&](std::string_view name, bool right) {
    if (!right) call.refuse(fmt::format("The length of {} should be equal to the batch size ({}).", name, prompts));
    return right;
  };
  if (!check("rid", fits(fields.rid, prompts)) || !check("return_logprob", fits(fields.return_logprob, prompts)) ||
      !check("logprob_start_len", fits(fields.logprob_start_len, prompts)) ||
      !check("top_logprobs_num", fits(fields.top_logprobs_num, prompts)) ||
      !check("token_ids_logprob", fits(fields.token_ids_logprob, prompts))) {
    return;
  }
  for (size_t i = 0; i < prompts; ++i) {
    PromptItem& item = call.items[i];
    item.rid = fields.rid.at(i, "");
    if (call.is_batch && !fields.rid.is_list && !item.rid.empty()) item.rid += "_" + std::to_string(i);
    item.return_logprob = fields.return_logprob.at(i, false);
    item.logprob_start_len = fields.logprob_start_len.at(i, -1);
    item.top_logprobs_num = fields.top_logprobs_num.at(i, 0);
    item.token_ids_logprob = fields.token_ids_logprob.at(i, {});
    if (item.logprob_start_len < -1) call.refuse("logprob_start_len must be -1 or at least 0.");
    if (item.top_logprobs_num < 0 || item.top_logprobs_num > kMaxTopLogprobs) {
      call.refuse(fmt::format("top_logprobs_num must be in [0, {}], got {}.", kMaxTopLogprobs, item.top_logprobs_num));
    }
  }
  fields.bootstrap.spread(call);
}

}  // namespace

Result<Call> parse_generate(std::string_view body) {
  Call call;
  Fields fields;
  RETURN_IF_ERROR(
      parse_body(body, [&](const std::string& key, Cursor& at) { return read_field(key, at, fields, call); }));
  spread_prompts(fields, call);
  spread_sampling(fields, call);
  spread_lists(fields, call);
  return call;
}

}  // namespace tandem::api
