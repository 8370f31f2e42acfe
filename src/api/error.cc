#include "api/error.h"

#include "api/json_text.h"

namespace tandem::api {
namespace {

std::string error_object(std::string_view message, std::string_view type, int status) {
  std::string out = R"({"object":"error","message":)";
  append_json_string(out, message);
  out += R"(,"type":)";
  append_json_string(out, type);
  out += R"(,"param":null,"code":)";
  append_json_int(out, status);
  out += '}';
  return out;
}

}  // namespace

int http_status(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidInput: return 400;
    case ErrorCode::kCorrupt: return 400;
    case ErrorCode::kNotFound: return 404;
    case ErrorCode::kExhausted: return 503;
    case ErrorCode::kTimeout:
    case ErrorCode::kCancelled:
    case ErrorCode::kPeerLost: return 500;
  }
  return 500;
}

std::string native_error_body(std::string_view message) {
  std::string out = R"({"error":{"message":)";
  append_json_string(out, message);
  out += "}}";
  return out;
}

std::string validation_error_body(std::string_view message) { return error_object(message, "Bad Request", 400); }

std::string openai_error_body(std::string_view message, int status) {
  std::string_view type = status == 400 ? "BadRequestError" : "InternalServerError";
  return error_object(message, type, status);
}

std::string abort_error_body(std::string_view message, int status) {
  return error_object(message, std::to_string(status), status);
}

std::string detail_body(std::string_view detail) {
  std::string out = R"({"detail":)";
  append_json_string(out, detail);
  out += '}';
  return out;
}

std::string unknown_model_body(std::string_view model) {
  std::string out = R"({"error":{"message":)";
  append_json_string(out, "The model '" + std::string(model) + "' does not exist");
  out += R"(,"type":"invalid_request_error","param":"model","code":"model_not_found"}})";
  return out;
}

}  // namespace tandem::api
