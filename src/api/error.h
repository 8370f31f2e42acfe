// What a failed request is told: HTTP status and the bodies of SGLang's error forms. Pure.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace tandem::api {

// kCorrupt (the body is not JSON, or a field has the wrong type) and kInvalidInput are 400, kNotFound 404, kExhausted
// 503, all others 500.
int http_status(ErrorCode code);

// {"error":{"message":...}}: native endpoints, values that were understood but cannot be served.
std::string native_error_body(std::string_view message);
// {"object":"error","message":...,"type":"Bad Request","param":null,"code":400}: broken JSON, wrong types.
std::string validation_error_body(std::string_view message);
// {"object":"error","message":...,"type":type,"param":null,"code":status}: OpenAI endpoints.
std::string openai_error_body(std::string_view message, int status);
// The same object with the status as type: a request that the scheduler gave up.
std::string abort_error_body(std::string_view message, int status);
// {"detail":...}: unknown path, wrong method.
std::string detail_body(std::string_view detail);
// /v1/models/{id} of a model that is not served.
std::string unknown_model_body(std::string_view model);

}  // namespace tandem::api
