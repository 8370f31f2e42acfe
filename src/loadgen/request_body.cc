#include "loadgen/request_body.h"

#include "base/check.h"

namespace tandem::loadgen {
namespace {

json::Array to_array(const std::vector<int32_t>& ids) { return json::Array(ids.begin(), ids.end()); }

json::Object native_body(const RequestShape& shape, const WorkItem& item) {
  json::Object body;
  if (item.ids.empty()) {
    body["text"] = item.text;
  } else {
    body["input_ids"] = to_array(item.ids);
  }
  body["sampling_params"] =
      json::Object{{"temperature", 0.0}, {"max_new_tokens", item.output_len}, {"ignore_eos", shape.ignore_eos}};
  body["stream"] = shape.stream;
  body["lora_path"] = nullptr;
  body["return_logprob"] = shape.return_logprob;
  body["logprob_start_len"] = -1;
  return body;
}

json::Object completions_body(const RequestShape& shape, const WorkItem& item) {
  json::Object body;
  body["model"] = shape.model;
  body["prompt"] = item.text;
  body["temperature"] = 0.0;
  body["best_of"] = 1;
  body["max_tokens"] = item.output_len;
  body["stream"] = shape.stream;
  body["ignore_eos"] = shape.ignore_eos;
  return body;
}

json::Object chat_body(const RequestShape& shape, const WorkItem& item) {
  json::Object body;
  body["model"] = shape.model;
  body["messages"] = json::Array{json::Object{{"role", "user"}, {"content", item.text}}};
  body["temperature"] = 0.0;
  body["max_completion_tokens"] = item.output_len;
  body["stream"] = shape.stream;
  body["ignore_eos"] = shape.ignore_eos;
  return body;
}

json::Value string_value(std::string_view text) {
  return json::Value(boost::json::string_view(text.data(), text.size()));
}

}  // namespace

Result<RequestShape> request_shape(const BenchConfig& config, std::string model) {
  const Backend* backend = find_backend(config.backend);
  CHECK(backend);
  RequestShape shape;
  shape.dialect = backend->dialect;
  shape.model = std::move(model);
  shape.stream = !config.disable_stream;
  shape.ignore_eos = !config.disable_ignore_eos;
  shape.return_logprob = config.return_logprob;
  if (!config.extra_request_body.empty()) {
    ASSIGN_OR_RETURN(json::Document extra, json::Document::parse(config.extra_request_body, "--extra-request-body"));
    const json::Value value = to_value(extra.root());
    if (!value.is_object()) return invalid_input("--extra-request-body must be a JSON object");
    shape.extra = value.get_object();
  }
  return shape;
}

std::string request_body(const RequestShape& shape, const WorkItem& item) {
  json::Object body;
  switch (shape.dialect) {
    case Dialect::kNative: body = native_body(shape, item); break;
    case Dialect::kCompletions: body = completions_body(shape, item); break;
    case Dialect::kChat: body = chat_body(shape, item); break;
  }
  for (const auto& [key, value] : shape.extra) body[key] = value;
  return json::dump(body);
}

bool expects_full_length(const RequestShape& shape) {
  if (!shape.ignore_eos) return false;
  for (const char* key : {"sampling_params", "ignore_eos", "max_tokens", "max_completion_tokens", "stop",
                          "stop_token_ids", "stop_regex", "n"}) {
    if (shape.extra.contains(key)) return false;
  }
  return true;
}

bool streams(const RequestShape& shape) {
  const json::Value* extra = shape.extra.if_contains("stream");
  return extra && extra->is_bool() ? extra->get_bool() : shape.stream;
}

json::Value to_value(simdjson::dom::element element) {
  using simdjson::dom::element_type;
  switch (element.type()) {
    case element_type::ARRAY: {
      json::Array array;
      for (simdjson::dom::element child : simdjson::dom::array(element)) array.push_back(to_value(child));
      return array;
    }
    case element_type::OBJECT: {
      json::Object object;
      for (auto field : simdjson::dom::object(element)) {
        object[boost::json::string_view(field.key.data(), field.key.size())] = to_value(field.value);
      }
      return object;
    }
    case element_type::INT64: return json::Value(int64_t(element));
    case element_type::UINT64: return json::Value(uint64_t(element));
    case element_type::DOUBLE: return json::Value(double(element));
    case element_type::STRING: return string_value(std::string_view(element));
    case element_type::BOOL: return json::Value(bool(element));
    case element_type::NULL_VALUE: return nullptr;
  }
  return nullptr;
}

}  // namespace tandem::loadgen
