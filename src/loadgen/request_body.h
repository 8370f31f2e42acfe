// What is posted for one prompt. Pure.
#pragma once

#include <string>

#include "base/json.h"
#include "loadgen/bench_config.h"
#include "loadgen/workload.h"

namespace tandem::loadgen {

struct RequestShape {
  Dialect dialect = Dialect::kNative;
  std::string model;  // the two OpenAI dialects
  bool stream = true;
  bool ignore_eos = true;
  bool return_logprob = false;
  json::Object extra;  // replaces keys of the top level
};

// config: validated. model: config.served_model_name, or what the server names.
Result<RequestShape> request_shape(const BenchConfig& config, std::string model);
std::string request_body(const RequestShape& shape, const WorkItem& item);
// Whether a complete answer has exactly the tokens asked for: not when it may stop early or `extra` asks for another
// length.
bool expects_full_length(const RequestShape& shape);
// Whether answers stream: `extra` may say otherwise than the shape.
bool streams(const RequestShape& shape);

// A parsed element as a value to write.
json::Value to_value(simdjson::dom::element element);

}  // namespace tandem::loadgen
